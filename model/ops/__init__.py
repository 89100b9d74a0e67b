"""Operators that need compiled code, one module an operator."""
