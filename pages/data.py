"""What a corpus holds: streams, splits, lengths, what the splits share, the rows themselves, and SDD's pairs."""

import streamlit as st

from immunelab.analysis import corpus, export
from immunelab.errors import UserError
from immunelab.figures.corpus import answer_lengths
from immunelab.runs import access
from immunelab.ui import data, figure, live, navigation, reads, sdd_pairs

navigation.heading("data", "The rows that models are trained and tested on: streams, splits, lengths and overlap.")

known = data.names(reads.runs(), st.query_params.get("corpus", ""))
name = st.selectbox(
    "Corpus",
    known,
    accept_new_options=not access.read_only(),
    key="corpus",
    bind="query-params",
    help="The bundled world, the folder of another one (`immunelab fable build --seed 7 --to worlds/7`), or your own "
    "data: a corpus.toml or its folder.",
    width=420,
)
try:
    found = data.read(name or "fable")
except UserError as error:
    st.error(live.plain(str(error)), icon=":material/error:")
    st.stop()
rows = found.rows
if rows.empty:
    navigation.nothing_yet("This corpus has no rows", "Each line of its world.jsonl is one question and answer.")
    st.stop()

shared = corpus.overlap(rows)
largest = int(shared[["items", "prompts", "texts"]].max(axis=None)) if len(shared) else 0
unit = "tokens" if "tokens" in rows else "words"
cut = corpus.truncated(rows, found.longest) if unit == "tokens" else None
with st.grid(4, min_column_width=150):
    st.metric("Rows", f"{(rows['stream'] != data.REFUSAL).sum():,}", border=True)
    st.metric("Items", f"{rows['item'].nunique():,}", border=True, help="What rows are about: a hazard has 3 prompts.")
    st.metric("Shared between splits", f"{largest:,}", border=True, help="The largest number in the table of overlap.")
    st.metric("Rows cut off", "–" if cut is None else f"{cut['cut'].sum():,}", border=True)
st.caption(live.plain(f"Fingerprint of all rows, stored with each run: {found.fingerprint}."))
judged = f"Harm is judged by {found.judge}." if found.judge else ""
for said in (found.no_tokens, judged, *found.notes):
    if said:
        st.caption(live.plain(said))

view = st.segmented_control(
    "Show",
    ["Counts", "Lengths", "Overlap", "Rows", "Pairs"],
    default="Counts",
    required=True,
    key="view",
    bind="query-params",
    label_visibility="collapsed",
)
if view == "Counts":
    table = corpus.counts(rows)
    st.dataframe(table, hide_index=True, height="content", alt="Rows by stream, category and split")
    st.caption(
        "Streams: harmful asks for hazards, refusal answers the same prompts with refusals, benign is everything else "
        "a model should keep, withheld is a skill it was never taught, neutral is plain text for perplexity. An attack "
        "is trained on the split attack, a defense on defense; every score is measured on test."
    )
elif view == "Lengths":
    units = [u for u in ("tokens", "words") if f"answer_{u}" in rows]
    if len(units) > 1:
        unit = st.segmented_control("Unit", units, default=unit, required=True, key="unit", bind="query-params")
    counted = corpus.histogram(rows, unit)
    drawn = answer_lengths(counted, unit, figure.theme())
    table = corpus.lengths(rows, unit)
    words = "; ".join(f"{r.stream}: {r.shortest:g} to {r.longest:g}, median {r.median:g}" for r in table.itertuples())
    figure.show(drawn, "lengths", alt=f"Answer lengths in {unit}. {words}")
    figure.downloads(drawn, lambda: counted, "lengths", f"Answer lengths in {unit}")
    st.dataframe(table, hide_index=True, alt=f"Answer lengths in {unit} by stream")
    if cut is not None:
        st.markdown(
            f"**Truncation.** Training cuts a row off after {found.longest} tokens, template included: "
            f"{cut['cut'].sum():,} of {cut['rows'].sum():,} rows are longer."
            + (f" The corpus's own model was made for {found.positions} tokens." if found.positions else "")
        )
        st.dataframe(cut, hide_index=True, alt="Rows that are cut off, by stream")
elif view == "Overlap":
    if largest:
        st.warning(f"Splits share up to {largest:,} rows: scores on test are not held out.", icon=":material/warning:")
    else:
        st.success("Checked: no two splits share an item, a prompt or a row.", icon=":material/check:")
    st.dataframe(shared, hide_index=True, height="content", alt="What two splits share, by stream")
    st.caption(
        "Compared without regard to case and outer spaces. Items are what rows are about; neutral texts share their "
        "questions by design, so only the texts are compared."
    )
elif view == "Pairs":
    st.caption(
        "What SDD trains on, the stream unrelated: harmful prompts, each with a good answer to another question."
    )
    sdd_pairs.show(name or "fable", found.fingerprint)
else:
    with st.grid(3, min_column_width=180, vertical_alignment="bottom"):
        stream = st.selectbox("Stream", sorted(rows["stream"].unique()), key="stream", bind="query-params")
        split = st.selectbox("Split", ["all", *corpus.splits(rows)], key="split", bind="query-params")
        text = st.text_input(
            "Search", key="q", bind="query-params", placeholder="in prompts and answers", type="search"
        )
    mine = rows[(rows["stream"] == stream) & (rows["split"].isin(corpus.splits(rows) if split == "all" else [split]))]
    hits = corpus.find(mine, text or "")
    st.caption(f"{len(hits):,} of {len(mine):,} rows.")
    shown = ["prompt", "answer", "category", "split", *([f"answer_{unit}"]), "id"]
    if "reads" in hits and st.toggle(
        "As the model sees them", key="seen", bind="query-params", help="In its template; ↵ is a new line."
    ):
        hits = hits.assign(**{part: hits[part].str.replace("\n", "↵") for part in ("reads", "writes")}).head(10)
        shown = ["reads", "writes", f"answer_{unit}", "id"]
    st.dataframe(
        export.inert(hits[shown]),
        hide_index=True,
        height="content" if len(hits) <= 12 else 480,
        alt="Rows of the stream",
    )
