"""The router: the script that the server runs for every page."""

import streamlit as st

from immunelab.method import catalogue
from immunelab.runs import access
from immunelab.ui import live, navigation, server

# Before `st.navigation`: else the browser first asks a font host for the page's icon.
st.set_page_config(page_icon=navigation.ICON, layout="wide")
st.logo(navigation.ICON, size="large")
for risk in server.risks():
    st.warning(risk, icon=":material/public:")
if access.read_only():
    st.caption(":material/lock: This lab is open for reading: everything recorded can be looked at, nothing started.")
catalogue.refresh(tell=st.toast)
for problem in catalogue.problems():
    st.warning(problem, icon=":material/extension_off:")
page = st.navigation(navigation.pages(), expanded=True)
with st.sidebar:
    live.control()
with st.container():  # even when it is empty: what follows keeps its place, and charts are not drawn anew
    live.under_way_line()
with server.in_turn():
    page.run()
server.settle()
