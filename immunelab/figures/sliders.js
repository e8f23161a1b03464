// Sliders over what was recorded: every position is drawn in the browser at once, and the server hears of it when the
// handle rests. A free slider may stop between recorded values; it snaps to one only when near.
const PLACES = 1000; // positions of a free slider
const NEAR = 12; // so many positions from a recorded value it snaps
const REST = 200; // milliseconds without a move

// As Python writes it with %g, which is how recorded values are written.
const written = (value) => (value !== 0 && Math.abs(value) < 1e-4 ? value.toExponential().replace(/e-(\d)$/, "e-0$1") : String(value));

// How a slider's positions stand for values: `place` of a value, and what stands `at` a place.
function scale({ values, texts, free, logarithmic, whole }) {
  const f = logarithmic && values[0] > 0 ? Math.log : (v) => v;
  const back = logarithmic && values[0] > 0 ? Math.exp : (v) => v;
  const [low, high] = [f(values[0]), f(values[values.length - 1])];
  const recorded = (i) => ({ value: values[i], text: texts[i], recorded: true });
  const closest = (gaps) => gaps.indexOf(Math.min(...gaps));
  if (!free || !(high > low)) {
    return { most: values.length - 1, marks: [], place: (value) => closest(values.map((v) => Math.abs(f(v) - f(value)))), at: recorded };
  }
  const place = (value) => Math.round((PLACES * (f(value) - low)) / (high - low));
  const marks = values.map(place);
  const at = (p) => {
    const gaps = marks.map((mark) => Math.abs(mark - p));
    const near = closest(gaps);
    if (gaps[near] <= NEAR) return recorded(near);
    const exact = back(low + (p / PLACES) * (high - low));
    const value = whole ? Math.round(exact) : Number(exact.toPrecision(2));
    return values.includes(value) ? recorded(values.indexOf(value)) : { value, text: written(value), recorded: false };
  };
  return { most: PLACES, marks, place, at };
}

function one(slider, place, moved) {
  const steps = scale(slider);
  const row = place.appendChild(document.createElement("div"));
  row.className = "immunelab-slider";
  const id = `immunelab-${slider.key}-${Math.random().toString(36).slice(2)}`;
  const label = row.appendChild(document.createElement("label"));
  label.htmlFor = id;
  label.textContent = slider.label;
  const shown = row.appendChild(document.createElement("output"));
  const input = row.appendChild(document.createElement("input"));
  Object.assign(input, { type: "range", id, min: 0, max: steps.most, step: 1 });
  if (steps.marks.length) {
    const list = row.appendChild(document.createElement("datalist"));
    list.id = `${id}-marks`;
    for (const mark of steps.marks) list.appendChild(document.createElement("option")).value = mark;
    input.setAttribute("list", list.id);
  }
  const control = {
    slider,
    now: () => steps.at(Number(input.value)),
    set: (text) => {
      const i = slider.texts.indexOf(text);
      input.value = steps.place(i < 0 ? Number(text) : slider.values[i]);
      say();
    },
  };
  const say = () => {
    const { text, recorded } = control.now();
    shown.value = recorded ? text : `${text} (not run)`;
    input.setAttribute("aria-valuetext", shown.value);
  };
  input.addEventListener("input", () => {
    say();
    moved();
  });
  // Arrows go from one recorded value to the next; with Shift they go between them.
  input.addEventListener("keydown", (event) => {
    const way = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (!way || !steps.marks.length) return;
    event.preventDefault();
    const here = Number(input.value);
    const next = way > 0 ? steps.marks.find((m) => m > here) : steps.marks.findLast((m) => m < here);
    input.value = event.shiftKey ? here + 25 * way : (next ?? here);
    say();
    moved();
  });
  return control;
}

// Build or renew the sliders in `place`. `draw(frame, whole)` is called for every move (frame undefined: nobody recorded
// this; whole: `told.look` is new), `rest(texts)` when the handle rests. What the server says moves a handle only if it
// says something new.
function sliders(place, told, draw, rest) {
  const state = (place.immunelabSliders ??= {});
  Object.assign(state, { frames: told.frames, draw, rest });
  const texts = () => state.controls.map((control) => control.now().text);
  const redraw = (whole = false) => {
    state.drawn = texts().join("|");
    state.draw(state.frames[state.drawn], whole);
  };
  const made = JSON.stringify(told.sliders);
  if (state.made !== made) {
    const before = state.controls && state.later ? texts() : told.at; // a new value arrives while a handle is held
    const focus = place.contains(document.activeElement) ? [...place.querySelectorAll("input")].indexOf(document.activeElement) : -1;
    place.replaceChildren();
    const moved = () => {
      if (!state.soon) redraw();
      cancelAnimationFrame(state.soon);
      state.soon = requestAnimationFrame(() => {
        state.soon = 0; // several moves within a frame are drawn twice at most: the first and the last
        if (state.drawn !== texts().join("|")) redraw();
      });
      clearTimeout(state.later);
      state.later = setTimeout(() => {
        state.later = 0;
        state.rest(texts());
      }, REST);
    };
    state.controls = told.sliders.map((slider) => one(slider, place, moved));
    state.controls.forEach((control, i) => control.set(before[i]));
    if (focus >= 0) place.querySelectorAll("input")[focus]?.focus();
  } else if (!state.later && state.at !== told.at.join("|")) {
    state.controls.forEach((control, i) => control.set(told.at[i]));
  }
  const whole = state.look !== told.look;
  Object.assign(state, { made, at: told.at.join("|"), look: told.look });
  if (whole || state.drawn !== texts().join("|")) redraw(whole);
}
