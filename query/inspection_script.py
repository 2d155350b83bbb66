"""The style, the frame and the script of the page of an `Inspection`; they name no address."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root { color-scheme: light }
* { box-sizing: border-box }
body { margin: 0; color: #1b1f24; background: #fff; font: 14px/1.4 system-ui, sans-serif }
header { padding: 12px 16px; border-bottom: 1px solid #d5dae0; background: #f6f8fa }
h1 { margin: 0 0 4px; font-size: 17px }
header p { margin: 0; color: #444c56 }
fieldset { border: 0; margin: 8px 0 0; padding: 0; display: flex; gap: 16px; flex-wrap: wrap }
legend { float: left; margin-right: 12px; padding: 0; font-weight: 600 }
main { display: grid; grid-template-columns: minmax(0, 1fr) 370px; height: calc(100vh - 130px) }
#scroll { overflow: auto }
table { border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums }
th, td { border-right: 1px solid #e6eaee; border-bottom: 1px solid #e6eaee; padding: 2px 5px }
thead th { position: sticky; top: 0; z-index: 2; background: #f6f8fa; font-weight: 600;
  vertical-align: bottom; min-width: 54px; font-size: 12px; white-space: nowrap }
thead small { display: block; font-weight: 400; color: #57606a }
tbody th, thead th:first-child { position: sticky; left: 0; z-index: 1; background: #fff;
  text-align: left; font-weight: 400; white-space: pre; max-width: 240px; overflow: hidden;
  text-overflow: ellipsis }
thead th:first-child { z-index: 3; background: #f6f8fa }
tbody th i { display: inline-block; width: 3.2em; color: #57606a; font-style: normal;
  font-size: 12px }
tbody th code { font: 13px ui-monospace, monospace; background: #eef1f4; border-radius: 3px;
  padding: 0 2px }
tr.generated th code { background: #d8f0dc }
tr.template th code { background: #fff; color: #57606a }
td { text-align: center; font-size: 12px; cursor: pointer }
td:focus { outline: 3px solid #0550ae; outline-offset: -3px }
td.chosen { box-shadow: inset 0 0 0 2px #0550ae }
aside { border-left: 1px solid #d5dae0; padding: 12px 16px; overflow: auto }
aside h2 { margin: 0; font-size: 15px; overflow-wrap: anywhere }
aside p { margin: 4px 0 8px; color: #444c56; overflow-wrap: anywhere }
aside ol { list-style: none; margin: 0; padding: 0 }
aside li { padding: 6px 0; border-top: 1px solid #e6eaee }
aside li p { display: flex; flex-wrap: wrap; gap: 0 10px; margin: 0 0 2px }
aside li b { white-space: nowrap; color: #1b1f24 }
aside li span { white-space: nowrap }
aside li div code { font: 12px ui-monospace, monospace; background: #eef1f4; border-radius: 3px;
  padding: 0 3px; margin-right: 3px; white-space: pre }
@media (max-width: 900px) { main { grid-template-columns: 1fr; height: auto } }
"""

BODY: Final = """
<header><h1>An inspected prompt</h1><p id="heading"></p>
<fieldset id="switch"><legend>Colour</legend>
<label><input type="radio" name="colour" value="score" checked> strongest firing, within its
column (<span id="meaning"></span>)</label>
<label><input type="radio" name="colour" value="unexplained"> what the SAE leaves unexplained
(under each layer: mean over the tokens)</label></fieldset></header>
<main><div id="scroll"><table aria-label="tokens by layers"><thead></thead><tbody></tbody></table>
</div><aside aria-live="polite"><h2>Choose a cell</h2><p>Point at a cell, click it, or go there with
the arrow keys: what fired at this token in this layer is shown here.</p></aside></main>
<noscript>The page draws its data with JavaScript, which is turned off here.</noscript>
"""

SCRIPT: Final = r"""
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const find = (selector) => document.querySelector(selector);
function make(tag, text, parent) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}
const signs = { "\n": "\u21b5", "\t": "\u21e5" };
const visible = (text) => text.replace(/[\u0000-\u001f\u007f-\u009f]/g, (sign) => signs[sign] ||
  (sign < " " ? String.fromCharCode(0x2400 + sign.charCodeAt(0)) : "\ufffd"));
const digits = (value) => value === null ? "?" : String(Number(value.toPrecision(3)));
const percent = (value) => value === null || value === undefined ? "" :
  (100 * value).toFixed(value < 0.1 ? 1 : 0) + "%";

const nTokens = data.tokens.length, nPlaces = data.places.length;
const cells = Array.from({ length: nTokens * nPlaces }, () => ({ fired: [] }));
const at = (position, place) => cells[position * nPlaces + place];
const highest = new Array(nPlaces).fill(0), fired = data.firings;
const isBos = (position) => data.tokens[position].kind === "bos";
fired.position.forEach((position, i) => {
  const place = fired.place[i];
  at(position, place).fired.push(i);
  // BOS is far stronger than the rest, and would leave it pale.
  if (!isBos(position)) highest[place] = Math.max(highest[place], fired.score[i] || 0);
});
data.errors.position.forEach((position, i) => {
  at(position, data.errors.place[i]).unexplained = data.errors.unexplained[i];
});

find("#heading").textContent = data.heading.join(" \u00b7 ");
find("#meaning").textContent = data.meaning;
const head = make("tr", undefined, find("thead"));
make("th", "token", head).scope = "col";
data.places.forEach((place) => {
  const cell = make("th", "layer " + place.layer, head);
  cell.scope = "col";
  cell.title = place.sae;
  make("small", place.short.split("/")[0].replace(/_all$/, ""), cell);
  make("small", place.mean === null ? "" : percent(place.mean), cell).title =
    "unexplained, mean over the tokens";
});
const body = find("tbody");
data.tokens.forEach((token, position) => {
  const row = make("tr", undefined, body);
  row.className = token.kind;
  const name = make("th", undefined, row);
  name.scope = "row";
  make("i", position, name);
  make("code", visible(token.token), make("bdi", undefined, name));
  const said = [token.role === "none" ? "plain text" : token.role, token.kind].join(", ");
  name.title = visible(token.token) + " (" + said + ")";
  for (let place = 0; place < nPlaces; place++) {
    const cell = make("td", undefined, row);
    cell.tabIndex = position || place ? -1 : 0;
    cell.dataset.at = position * nPlaces + place;
  }
});
const grid = Array.from(body.querySelectorAll("td"));

function paint() {
  const byScore = find("#switch input:checked").value === "score";
  grid.forEach((node, i) => {
    const cell = cells[i], place = i % nPlaces;
    let share = 0, text = "";
    if (byScore && cell.fired.length) {
      const score = fired.score[cell.fired[0]];
      share = score === null ? 0 : Math.min(1, score / (highest[place] || 1));
      text = digits(score);
    } else if (!byScore && typeof cell.unexplained === "number") {
      share = Math.min(1, cell.unexplained);
      text = percent(cell.unexplained);
    }
    const shade = (share * 0.75).toFixed(3);
    node.style.background = byScore ? `rgba(255,140,0,${shade})` : `rgba(40,120,230,${shade})`;
    node.textContent = text;
  });
}

function rank(i, position) {
  if (data.against === null || isBos(position)) return "";
  if (fired.percentile[i] === null) return "fires nowhere on " + data.against;
  const error = fired.error[i];
  const places = error >= 1 ? 0 : 1;
  return "percentile " + fired.percentile[i].toFixed(places) +
    (error ? " \u00b1 " + error.toFixed(places) : "") + " of " + data.against;
}

function show(index) {
  const position = Math.floor(index / nPlaces), place = data.places[index % nPlaces];
  const panel = find("aside"), token = data.tokens[position];
  panel.replaceChildren();
  const title = make("h2", position + " ", panel);
  make("code", visible(token.token), make("bdi", undefined, title));
  make("p", "layer " + place.layer + ", " + place.sae, panel);
  const missed = cells[index].unexplained;
  make("p", typeof missed === "number" ? "unexplained: " + percent(missed) :
    "unexplained: not computed" + (isBos(position) ? " on BOS" : ""), panel);
  const list = make("ol", undefined, panel);
  cells[index].fired.forEach((i) => {
    const item = make("li", undefined, list), about = data.about[fired.about[i]];
    const line = make("p", undefined, item);
    make("b", "feature " + about.feature, line);
    make("span", "activation " + digits(fired.activation[i]), line);
    if (data.by !== "activation") make("span", data.by + " " + digits(fired.score[i]), line);
    make("span", rank(i, position), line);
    const meaning = make("div", about.label === null ? undefined : visible(about.label), item);
    if (about.label === null) (about.top_tokens || []).forEach((piece) => {
      make("code", visible(piece), meaning);
    });
  });
  if (!cells[index].fired.length) make("p", "Nothing fires here.", panel);
  grid.forEach((node) => node.classList.remove("chosen"));
  grid[index].classList.add("chosen");
}

let pinned = false;
function indexOf(event) {
  const node = event.target.closest("td");
  return node === null ? null : Number(node.dataset.at);
}
body.addEventListener("mouseover", (event) => {
  const index = indexOf(event);
  if (index !== null && !pinned) show(index);
});
body.addEventListener("click", (event) => {
  const index = indexOf(event);
  if (index !== null) { pinned = true; focusOn(index); show(index); }
});
function focusOn(index) {
  grid.forEach((node) => { node.tabIndex = -1; });
  grid[index].tabIndex = 0;
  grid[index].focus();
}
body.addEventListener("focusin", (event) => { const i = indexOf(event); if (i !== null) show(i); });
body.addEventListener("keydown", (event) => {
  const index = indexOf(event);
  if (index === null) return;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -nPlaces, ArrowDown: nPlaces }[event.key];
  if (event.key === "Escape") { pinned = false; return; }
  if (step === undefined) return;
  event.preventDefault();
  const next = index + step;
  if (next >= 0 && next < grid.length) { pinned = true; focusOn(next); }
});
find("#switch").addEventListener("change", paint);
paint();
// The first cell that is not BOS is shown first.
const first = cells.findIndex((cell, i) => cell.fired.length && !isBos(Math.floor(i / nPlaces)));
if (first >= 0) show(first);
"""
