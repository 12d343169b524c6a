"""Programs as compiled code: tracing, graph rewrites, code generation, the compiled training step.

Also training ensembles, whose members take their steps in one graph.
"""
