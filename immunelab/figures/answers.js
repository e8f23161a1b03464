// Answers of models side by side, at every position of the sliders. They are untrusted text, and are never read as HTML.
function card({ title, answer, note }) {
  const box = document.createElement("section");
  box.className = "immunelab-answer";
  box.appendChild(document.createElement("h4")).textContent = title;
  box.appendChild(document.createElement("pre")).textContent = answer;
  box.appendChild(document.createElement("p")).textContent = note;
  return box;
}

function drawAnswers(data, parentElement, send) {
  const place = parentElement.querySelector(".immunelab-sliders");
  const told = parentElement.querySelector(".immunelab-told");
  const answers = parentElement.querySelector(".immunelab-answers");
  const moves = { ...JSON.parse(data.sliders), look: data.sliders };
  const draw = (frame) => {
    answers.classList.toggle("immunelab-dimmed", !frame);
    told.textContent = frame ? frame.said : data.missing;
    if (!frame) return;
    answers.style.gridTemplateColumns = `repeat(auto-fit, minmax(min(100%, max(280px, ${Math.floor(90 / data.columns)}%)), 1fr))`;
    answers.replaceChildren(...frame.cards.map(card));
    answers.dispatchEvent(new CustomEvent("immunelab-drawn"));
  };
  sliders(place, moves, draw, (texts) => send("picked", JSON.stringify(texts)));
}
