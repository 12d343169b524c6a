"""Programs as compiled code: tracing, code generation, the compiled training step, many members in one graph."""
