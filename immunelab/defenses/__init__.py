"""One file a defense; each registers itself (`immunelab.method.register`)."""
