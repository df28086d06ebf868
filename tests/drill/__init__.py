"""Fault drill: curricula on digits whose `make` is killed again and again (`make drill`)."""
