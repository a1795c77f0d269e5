"""Running a model on distributions instead of numbers.

Records, their algebra, the rules and the interpreter.
"""
