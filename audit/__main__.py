"""`python -I -m audit verify LOG`: the room alone, without the proxy and its dependencies."""

from audit.cli import audit

if __name__ == "__main__":
    audit(prog_name="python -I -m audit")
