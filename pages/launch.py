"""Choose model, defense and attack, set the knobs, and start runs."""

import json

import streamlit as st

from immunelab import jobs
from immunelab.analysis.estimate import estimate
from immunelab.errors import UserError
from immunelab.jobs import demand, follow
from immunelab.method import catalogue
from immunelab.runs import access
from immunelab.sweep import Choice, crossed, plan
from immunelab.ui import forms, grid_form, launch_form, live, navigation, reads

navigation.heading(
    "launch", "Start runs: each is its own process, goes on when this page is closed, and records everything."
)

if access.read_only():
    navigation.nothing_yet(
        "Nothing can be started here",
        "This lab is open for reading only. In a lab of your own (`pip install immunelab`, `immunelab app`) this page "
        "starts immunizations, attacks and grids of them.",
        ("methods", "What each defense and attack does"),
        ("collapse", "What they did"),
    )
    st.stop()
defenses, attacks = catalogue.names("defense"), catalogue.names("attack")

runs = reads.runs()
copied = launch_form.copied(runs, st.query_params.get("from"))
if copied:
    st.caption(live.plain(f"Filled with the settings of {reads.labels(runs)[st.query_params['from']]}."))

with st.grid(5, min_column_width=140, vertical_alignment="bottom"):
    model = st.selectbox(
        "Model",
        launch_form.models(runs, copied),
        format_func=launch_form.model_name(runs),
        accept_new_options=True,
        key="model",
        bind="query-params",
        help="The model that comes with the corpus (Fable's is bundled), a run's checkpoint, a Hub id or a folder.",
    )
    corpus = st.selectbox(
        "Corpus", launch_form.corpora(runs, copied), accept_new_options=True, key="corpus", bind="query-params"
    )
    device = st.selectbox("Device", ["auto", *jobs.devices()], key="device", help="auto: the first GPU, else the CPU.")
    first = st.number_input("First seed", 0, 2**31 - 1, copied.seed if copied else 0, key="seed")
    count = st.number_input("Number of seeds", 1, 50, 1, key="seeds", help="Bands on charts are over seeds.")

numbers = launch_form.numbers(copied)

guards: list[Choice] = []
faced: list[Choice] = []
problem = ""
left, right = st.columns(2, gap="large")
with left:
    st.subheader("Defense", anchor=False)
    options = ["none", *defenses]
    defense = st.selectbox(
        "Defense",
        options,
        index=launch_form.position(options, copied, ("immunize",), "seam"),
        format_func=lambda n: "None: attack the model as it is" if n == "none" else catalogue.entry("defense", n).title,
        key="defense",
        bind="query-params",
    )
    if defense != "none":
        entry = catalogue.entry("defense", defense)
        preset, values = launch_form.preset(
            entry, plan.suited("immunize", defense, corpus), copied if copied and copied.method == defense else None
        )
        with st.expander("Knobs of the defense"):
            typed = forms.knob_inputs(entry.knobs, values, f"{defense}-{preset}")
        try:
            guards = [launch_form.chosen("immunize", defense, corpus, typed)]
        except UserError as error:
            problem = str(error)
with right:
    st.subheader("Attack", anchor=False)
    options = ["none", *attacks]
    attack = st.selectbox(
        "Attack",
        options,
        index=launch_form.position(options, copied, ("attack", "finetune"), "harmful-sft"),
        format_func=lambda n: "None: only immunize" if n == "none" else catalogue.entry("attack", n).title,
        key="attack",
        bind="query-params",
    )
    kind, control = "attack", False
    if attack != "none":
        entry, again = catalogue.entry("attack", attack), copied if copied and copied.method == attack else None
        kind = launch_form.kind_of(attack, again)
        preset, values = launch_form.preset(entry, plan.suited(kind, attack, corpus), again)
        with st.expander("Knobs of the attack"):
            typed = forms.knob_inputs(entry.knobs, values, f"{attack}-{preset}")
        ladder = plan.rungs(attack, corpus)
        rungs = (
            st.pills(
                "Rungs of the ladder",
                list(ladder),
                selection_mode="multi",
                key=f"rungs-{attack}",
                help="Recorded intensities, from far too weak to far too strong, in place of the knobs above.",
            )
            if ladder
            else []
        )
        try:
            faced = [plan.choose(kind, attack, corpus, rung=rung) for rung in rungs] or [
                launch_form.chosen(kind, attack, corpus, typed)
            ]
        except UserError as error:
            problem = problem or str(error)
        if defense != "none":
            control = st.toggle(
                "Attack the undefended model too",
                value=True,
                key="control",
                help="The control: without it a defended outcome says little.",
            )
usual = plan.EVALUATE_EVERY[kind]
every = st.slider("Steps of the attack between evaluations", 1, 100, usual, key=f"every-{kind}", width=400)

specs = []
try:
    if not problem and (guards or faced):
        specs = crossed(
            guards,
            faced,
            seeds=range(int(first), int(first) + int(count)),
            model=follow.model(model, reads.home()),
            control=control,
            evaluate_every=every,
            corpus=corpus,
            device=device,
            group=launch_form.group(guards, faced),
            **numbers,
        )
except UserError as error:
    problem = str(error)
if problem:
    st.error(problem, icon=":material/error:")

with st.container(border=True, horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
    if not specs:
        st.write("Choose a defense, an attack, or both.")
    else:
        left = demand.told(specs, reads.home())
        st.write(f"{len(specs)} {'run' if len(specs) == 1 else 'runs'}. {estimate(specs, runs)} {left}")
        if st.button("Start", type="primary", icon=":material/play_arrow:", key="start"):
            run_ids = live.submit(specs)
            if run_ids:
                st.toast(f"Queued: {len(run_ids)} runs.")
if specs:
    with st.expander("The specs, as `immunelab run` takes them"):
        st.code(json.dumps([json.loads(s.to_json()) for s in specs], indent=1), language="json")

with st.expander("Many runs from a grid file", icon=":material/grid_on:"):
    grid_form.section(runs)

with st.container(horizontal=True):
    navigation.link("tradeoff", "Search for the worst attack", show="Attacker's search")
    navigation.link("tradeoff", "Tune a defense", show="Defense tuned")

st.subheader("Queue", anchor=False)
live.runs_under_way(limit=20, idle="Nothing is running.")
navigation.link("runs", "All runs")
