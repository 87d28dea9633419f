// What there is to know at a glance.

import { get } from "../api.js";
import { bars } from "../chart.js";
import { fill, h, icon } from "../dom.js";
import { STATES, number, words } from "../format.js";
import { at, badge, card, empty, runLink, took, when } from "../parts.js";
import { lateLine } from "./attention.js";

const RANGES = [["24", "24 hours"], ["168", "7 days"], ["720", "30 days"]];

export function home(context) {
  context.title("Home");
  const hours = () => context.query.get("hours") ?? "24";
  const range = h(
    "select",
    {
      "aria-label": "Time range",
      onchange: () => {
        context.setQuery({ hours: range.value === "24" ? null : range.value });
        loader.now();
      },
    },
    RANGES.map(([value, text]) => h("option", { value }, `Last ${text}`)),
  );
  range.value = hours();
  const tiles = h("div.tiles", { "aria-live": "off" });
  const note = h("p.muted.small", { hidden: true });
  const chart = bars(context.signal, (bucket) => {
    location.hash = at("runs", { since: bucket.at, parent: "any" });
  });
  const attention = h("div.list");
  const failures = h("div.list");
  const running = h("div.list");
  const latest = h("div.list");
  const late = h("div.list");
  const lateCard = card("Late schedules", late);
  const attentionCard = card("Needs attention", attention, h("a.more", { href: at("attention") }, "All"));
  lateCard.hidden = true;
  attentionCard.hidden = true;

  const loader = context.loader(async () => {
    const found = await get("summary", { hours: hours() }, context.signal);
    const counts = found.states ?? {};
    const since = new Date(Date.now() - Number(hours()) * 3.6e6).toISOString();
    fill(
      tiles,
      STATES.filter((state) => counts[state] || ["COMPLETED", "RUNNING", "FAILED"].includes(state)).map((state) =>
        h(
          "a.tile",
          { href: at("runs", { state, parent: "any", since: state === "RUNNING" ? null : since }), dataset: { state } },
          h("span.tile-number", null, number(counts[state] ?? 0)),
          h("span.tile-label", null, icon(state), words(state)),
        ),
      ),
    );
    note.hidden = !found.cut;
    note.textContent = `Counted: the newest ${number(found.counted)} runs.`;
    chart.show(found.buckets ?? []);
    show(failures, found.failures, "Nothing has failed.");
    show(running, found.running, "Nothing is running.");
    show(latest, found.latest, "No flow has run yet.");
    attentionCard.hidden = !found.attention?.length;
    show(attention, found.attention, "");
    lateCard.hidden = !found.late?.length;
    fill(late, (found.late ?? []).slice(0, 10).map(lateLine));
  }, 3);
  loader.now();
  context.onLive(loader.soon);
  context.every(30, loader.soon);

  return h(
    "div.page",
    null,
    h("header.page-head", null, h("h1", null, "Home"), range),
    tiles,
    note,
    h("div.grid.two", null, attentionCard, lateCard),
    card("Runs over time", chart.node, legend()),
    h("div.grid.two", null,
      card("Running", running, h("a.more", { href: at("runs", { state: "RUNNING", parent: "any" }) }, "All")),
      card("Failures", failures, h("a.more", { href: at("runs", { state: ["FAILED", "CRASHED"] }) }, "All"))),
    card("Latest runs", latest, h("a.more", { href: at("runs") }, "All")),
  );
}

function show(node, list, none) {
  if (!list?.length) {
    fill(node, empty(none));
    return;
  }
  fill(node, list.map((run) =>
    h("div.item", { dataset: { run: run.id } },
      badge(run.state, run.state_name),
      h("div.item-main", null, runLink(run),
        h("span.sub", null, run.message || (run.flow === run.name ? "" : run.flow))),
      h("div.item-end", null, took(run), when(run.started_at ?? run.created_at)))));
}

function legend() {
  return h("ul.legend", { "aria-hidden": "true" },
    ["COMPLETED", "RUNNING", "FAILED", "CANCELLED", "PAUSED", "SCHEDULED"].map((state) =>
      h("li", null, h("span.swatch", { dataset: { state } }), words(state))));
}
