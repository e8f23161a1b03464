"""Choose model, defense and attack, set the knobs, and start runs."""

import json

import streamlit as st

from immunelab import jobs
from immunelab.errors import UserError
from immunelab.sweep import launch
from immunelab.ui import forms, grid_form, launch_form, live, navigation, reads

navigation.heading(
    "launch", "Start runs: each is its own process, goes on when this page is closed, and records everything."
)

with st.spinner("Reading the registry: this loads torch once"):
    from immunelab import method as registry
    from immunelab.method.knobs import knobs as knobs_of

    defenses, attacks = registry.names("defense"), registry.names("attack")

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

left, right = st.columns(2, gap="large")
with left:
    st.subheader("Defense", anchor=False)
    defense_name = st.selectbox(
        "Defense",
        ["none", *defenses],
        index=launch_form.position(["none", *defenses], copied, "immunize", "seam"),
        format_func=lambda n: "None: attack the model as it is" if n == "none" else registry.get("defense", n).title,
        key="defense",
        bind="query-params",
    )
    defense = None
    if defense_name != "none":
        cls = registry.get("defense", defense_name)
        preset, values = launch_form.preset(
            cls, copied if copied and copied.method == defense_name else None, "defense"
        )
        with st.expander("Knobs of the defense"):
            typed = forms.knob_inputs(knobs_of(cls, registry.Budget), values, f"{defense_name}-{preset}")
        defense = launch.Choice(defense_name, typed)
with right:
    st.subheader("Attack", anchor=False)
    attack_name = st.selectbox(
        "Attack",
        ["none", *attacks],
        index=launch_form.position(["none", *attacks], copied, "attack", "harmful-sft"),
        format_func=lambda n: "None: only immunize" if n == "none" else registry.get("attack", n).title,
        key="attack",
        bind="query-params",
    )
    chosen: list[launch.Choice] = []
    control = False
    if attack_name != "none":
        cls = registry.get("attack", attack_name)
        preset, values = launch_form.preset(cls, copied if copied and copied.method == attack_name else None, "attack")
        with st.expander("Knobs of the attack"):
            typed = forms.knob_inputs(knobs_of(cls, registry.Budget), values, f"{attack_name}-{preset}")
        ladder = launch_form.rungs(cls, corpus)
        rungs = (
            st.pills(
                "Rungs of the ladder",
                list(ladder),
                selection_mode="multi",
                key=f"rungs-{attack_name}",
                help="Recorded intensities, from far too weak to far too strong, in place of the knobs above.",
            )
            if ladder
            else []
        )
        chosen = [launch.Choice(attack_name, ladder[r].settings()) for r in rungs] or [
            launch.Choice(attack_name, typed)
        ]
        if defense is not None:
            control = st.toggle(
                "Attack the undefended model too",
                value=True,
                key="control",
                help="The control: without it a defended outcome says little.",
            )
every = st.slider("Steps of the attack between evaluations", 1, 100, 10, key="every", width=400)

try:
    checked = launch_form.checked(registry.configure, defense, chosen)
    specs = launch.specs(
        *checked,
        model=model,
        corpus=corpus,
        seeds=range(int(first), int(first) + int(count)),
        device=device,
        control=control,
        evaluate_every=every,
        group=launch_form.group(defense, chosen),
        **numbers,
    )
    jobs.check(specs)
except UserError as error:
    st.error(str(error), icon=":material/error:")
    specs = []

with st.container(border=True, horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
    if not specs:
        st.write("Choose a defense, an attack, or both.")
    else:
        st.write(f"{len(specs)} {'run' if len(specs) == 1 else 'runs'}. {launch.estimate(specs, runs)}")
        if st.button("Start", type="primary", icon=":material/play_arrow:", key="start"):
            run_ids = live.submit(specs)
            if run_ids:
                st.toast(f"Queued: {len(run_ids)} runs.")
if specs:
    with st.expander("The specs, as `immunelab run` takes them"):
        st.code(json.dumps([json.loads(s.to_json()) for s in specs], indent=1), language="json")

with st.expander("Many runs from a grid file", icon=":material/grid_on:"):
    grid_form.section(runs)

st.subheader("Queue", anchor=False)
live.runs_under_way(limit=20, idle="Nothing is running.")
navigation.link("runs", "All runs")
