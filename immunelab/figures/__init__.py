"""Frames in, plotly figures out; no Streamlit."""
