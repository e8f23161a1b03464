"""What can be done to runs: stop, resume, repeat, label, archive, delete."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from immunelab import jobs
from immunelab.analysis.estimate import duration
from immunelab.errors import UserError
from immunelab.jobs import failures
from immunelab.runs import access, journal
from immunelab.runs.journal import ENDED
from immunelab.ui import live, navigation, reads

GRACE_SECONDS = 20


def attempt(action: Callable[[], Any]) -> Any:
    """Do it and read anew; what the user can mend is told in a sentence, and None comes back."""
    try:
        result = action()
    except (UserError, OSError) as error:  # the system's refusals too: no room, no permission
        st.error(live.plain(failures.sentence(error)), icon=":material/error:")
        return None
    reads.forget()
    return result


def state(run: Mapping[Any, Any]) -> None:
    """A run's state in words, with its error if it failed."""
    facts = [f"Status: {run['status']}"]
    if isinstance(run["device"], str) and run["device"]:
        facts.append(f"on {run['device']}")
    if pd.notna(run["seconds"]) and run["seconds"]:
        facts.append(f"{duration(run['seconds'])} of work")
    if run["recorded_by"]:
        facts.append(f"recorded elsewhere, by {run['recorded_by']}")
    if run["status"] == "stopping":
        forced = "" if run["recorded_by"] else f"; ended by force after {GRACE_SECONDS} s"
        facts.append(f"finishing its step and saving{forced}")
    st.caption(live.plain(" · ".join(facts)))
    if isinstance(run["error"], str) and run["error"]:
        st.error(live.plain(run["error"]), icon=":material/error:", title="This run failed")


def _stop(run_id: str) -> None:
    attempt(lambda: jobs.stop(run_id, force_after=GRACE_SECONDS))


def _resume(run_id: str) -> None:
    attempt(lambda: jobs.resume(run_id))


def buttons(run: Mapping[Any, Any]) -> None:
    """Stop, resume, repeat and delete, as the state allows."""
    run_id = str(run["run_id"])
    if access.read_only():
        navigation.link("traces", "Traces", runs=[run_id])
        return
    shipped, elsewhere = bool(run["showcase"]), bool(run["recorded_by"])
    with st.container(horizontal=True):
        # Callbacks: what a click says is lost otherwise if the page is just being drawn anew.
        if run["status"] in ("queued", "running"):
            st.button(
                "Stop",
                icon=":material/stop:",
                key="stop",
                on_click=_stop,
                args=(run_id,),
                help="Asks the training that is recorded to stop."
                if elsewhere
                else "Finishes the step, saves a checkpoint and frees the device.",
            )
        if run["status"] in ("stopped", "interrupted", "failed") and not (shipped or elsewhere):
            st.button("Resume", icon=":material/play_arrow:", key="resume", on_click=_resume, args=(run_id,))
        if not elsewhere and st.button("Duplicate to Launch", icon=":material/content_copy:", key="duplicate"):
            navigation.go("launch", **{"from": run_id})
        navigation.link("traces", "Traces", runs=[run_id])
        if run["status"] in ENDED and not shipped and st.button("Delete", icon=":material/delete:", key="delete"):
            _confirm([run_id])


def on_several(runs: pd.DataFrame, words: Mapping[str, str]) -> None:
    """Delete or archive several runs at once."""
    if access.read_only():
        return
    own = runs[~runs["showcase"].astype(bool)]
    ended = own[own["status"].isin(ENDED)]
    with st.container(horizontal=True):
        if len(own) and st.button(f"Archive {len(own)} runs", icon=":material/archive:", key="archive-several"):
            for run_id in own["run_id"]:
                attempt(partial(_folder(run_id).write_labels, archived=True))
            st.rerun()
        if len(ended) and st.button(f"Delete {len(ended)} ended runs", icon=":material/delete:", key="delete-several"):
            _confirm(ended["run_id"].tolist())


def labels_form(run: Mapping[Any, Any]) -> None:
    """Name, tags, note, archived: the user's, never part of a run's identity."""
    if run["showcase"] or access.read_only():
        st.caption(
            "Shipped runs keep the labels they came with." if run["showcase"] else "Labels can't be changed here."
        )
        return
    folder = _folder(str(run["run_id"]))
    now = folder.labels()
    with st.form("labels", border=False):
        name = st.text_input("Name", now.name, max_chars=200)
        tags = st.multiselect("Tags", list(now.tags), default=list(now.tags), accept_new_options=True)
        note = st.text_area("Note", now.note)
        archived = st.checkbox("Archived: hidden from the table unless asked for", now.archived)
        saved = st.form_submit_button("Save")
    if saved and attempt(lambda: folder.write_labels(name=name, tags=tuple(tags), note=note, archived=archived)):
        st.rerun()


@st.dialog("Delete for good?")
def _confirm(run_ids: list[str]) -> None:
    st.write(f"{len(run_ids)} {'run' if len(run_ids) == 1 else 'runs'} with record, log and checkpoints. No way back.")
    if st.button(
        "Delete", type="primary", icon=":material/delete:", key="delete-now", on_click=_delete, args=(run_ids,)
    ):
        st.rerun()  # closes the dialog


def _delete(run_ids: list[str]) -> None:
    freed = [attempt(partial(jobs.delete, i)) for i in run_ids]
    st.session_state["run-choice"] = [i for i, size in zip(run_ids, freed, strict=True) if size is None]
    st.session_state["_freed"] = sum(size for size in freed if size is not None)


def told() -> None:
    """After a deletion: how much disk it freed."""
    freed = st.session_state.pop("_freed", None)
    if freed is not None:
        st.toast(f"Deleted; {size(freed)} of disk freed.", icon=":material/delete:")


def size(number: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


def _folder(run_id: str) -> journal.RunFolder:
    return journal.RunFolder.open(journal.home(None), run_id)
