"""Decision (policy decision point): what an agent may do. Imports no other room, never acts."""
