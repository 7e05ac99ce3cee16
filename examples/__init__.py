"""Small programs that use the proxy as its users do. Nothing of the product imports them."""
