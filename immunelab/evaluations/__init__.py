"""One file an evaluation; each registers itself (`immunelab.method.register`)."""
