"""Read-only SQL on the store, with the schema and questions to start from."""

import streamlit as st

from immunelab.analysis import export
from immunelab.ui import live, navigation, query

navigation.heading("query", "Ask the record yourself: DuckDB SQL over every run, score, scalar and answer. Read-only.")


def take_example() -> None:
    if st.session_state["example"]:
        st.session_state["sql"] = query.QUESTIONS[st.session_state["example"]]
        query.ask(st.session_state["sql"])


if "sql" not in st.session_state and "sql" not in st.query_params and (last := query.asked()):
    st.session_state["sql"] = last.sql  # back from another page

left, right = st.columns([0.7, 0.3], gap="large")
with right:
    st.subheader("Schema", anchor=False)
    query.schema()
    st.caption(
        f"A query sees this database and nothing else: it can't read or write files, load extensions or change "
        f"settings. It may take {query.limit():g} s and {query.MEMORY}; other pages wait for it meanwhile."
    )
with left:
    st.selectbox(
        "Start from a question",
        list(query.QUESTIONS),
        index=None,
        key="example",
        on_change=take_example,
        placeholder="Choose one: its SQL appears below and is run",
    )
    with st.form("ask", border=False):
        sql = st.text_area(
            "SQL",
            key="sql",
            height=240,
            bind="query-params",
            placeholder="SELECT * FROM runs LIMIT 10",
            help="Ctrl+Enter runs it. The address of this page holds the query: send it, or keep it as a bookmark.",
        )
        pressed = st.form_submit_button("Run", type="primary", icon=":material/play_arrow:")
question = query.asked()
if sql.strip() and (pressed or question is None or question.sql != sql):  # a link with a query shows its answer
    question = query.ask(sql)


@st.fragment(run_every=0.3)
def wait(going: query.Question) -> None:
    if going.over.is_set():
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button("Stop", icon=":material/stop:", key="stop"):
            going.stop.set()
        st.caption(f"Running for {going.elapsed():.0f} s of at most {query.limit():g} s.")


with left:
    if question is None:
        st.caption("No query has been run yet: choose a question, or write one.")
    elif not question.over.is_set():
        wait(question)
    elif question.error:
        st.error(live.plain(question.error), icon=":material/error:")
    elif question.frame is None or not len(question.frame.columns):
        st.caption("The statement has no result.")
    else:
        frame = question.frame
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            st.caption(query.shown(question), width="content")
            st.download_button(
                "CSV",
                data=lambda: export.csv(frame),
                file_name="immunelab-query.csv",
                mime="text/csv",
                on_click="ignore",
                icon=":material/download:",
                key="query-csv",
            )
        frame = export.inert(frame)  # the table has a download of its own
        st.dataframe(frame, hide_index=True, height="content" if len(frame) <= 15 else 560, alt="Rows of the query")
