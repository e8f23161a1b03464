"""The immunization card: what is read from the store for a scorecard, and its Markdown and HTML to take away.

In the spirit of a model card: one defense, what was measured, on how many runs, within which budget, and what is
missing.
"""

from immunelab.reports.card import markdown, page
from immunelab.reports.evidence import Recorded, find, gather, immunizations, learning, of, seeds_of

__all__ = ["Recorded", "find", "gather", "immunizations", "learning", "markdown", "of", "page", "seeds_of"]
