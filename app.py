"""ImmuneLab in the browser: `streamlit run app.py`."""

from immunelab.ui.server import serve

app = serve()
