"""The code's own shape under test: who imports whom, sizes, names, mirrors, documents, lint."""
