"""The protocol of one run (`execute`), what it measures, the provider behind it, and how Fable's model was made."""

from immunelab.experiment.run import Run, execute

__all__ = ["Run", "execute"]
