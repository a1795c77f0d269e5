"""Running a model on distributions instead of numbers: records, their algebra, the rules and the interpreter."""
