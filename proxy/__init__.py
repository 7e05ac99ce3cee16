"""Interception (policy enforcement point): the only room that touches the network."""
