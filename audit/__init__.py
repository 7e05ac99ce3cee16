"""Evidence: the hash-chained record. Imports no other room; verifiable without the proxy."""
