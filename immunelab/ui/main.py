"""The router: the script that the server runs for every page."""

import streamlit as st

from immunelab.ui import navigation

page = st.navigation(navigation.pages())
page.run()
