"""ImmuneLab in the browser: `streamlit run app.py`."""

import streamlit as st

from immunelab.ui.server import MAIN, ROUTES, lifespan

# `streamlit run` looks for a call of `st.App` in this file, so it stands here and not in a function elsewhere.
app = st.App(MAIN, lifespan=lifespan, routes=ROUTES)
