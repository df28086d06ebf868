"""Tables of the papers as YAML files, and the programs that run and print them."""
