"""One file an attack; each registers itself (`immunelab.method.register`)."""
