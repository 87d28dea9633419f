// What happens, newest first, as it happens.

import { get, items, part } from "../api.js";
import { fill, h, keyed } from "../dom.js";
import { shortTime } from "../format.js";
import { badge, empty, json, pager, shortId, table } from "../parts.js";

export function events(context) {
  context.title("Events");
  const { query } = context;
  const body = h("tbody");
  const none = h("div");
  const pages = h("div");
  let typing = 0;
  const box = table("Events", [["When"], ["Kind"], ["About"], ["Message", "wide"]], body);
  const change = (changes) => {
    context.setQuery({ cursor: null, ...changes });
    loader.now();
  };
  const typed = (name, label, props) => {
    const control = h("input", {
      type: "search", autocomplete: "off", spellcheck: "false", placeholder: label, "aria-label": label, value: query.get(name) ?? "", ...props,
      oninput: () => {
        clearTimeout(typing);
        typing = setTimeout(() => change({ [name]: control.value.trim() }), 250);
      },
    });
    return control;
  };
  const kind = typed("kind", "Kind, such as flow-run.Failed or task-run.*", { class: "grow", "data-filter": "" });
  const run = typed("run", "Run (id)", { class: "narrow" });
  context.signal.addEventListener("abort", () => clearTimeout(typing));
  let held = false;
  const hold = h("button.button.toggle", {
    type: "button", "aria-pressed": "false",
    onclick: () => {
      held = !held;
      hold.setAttribute("aria-pressed", String(held));
      if (!held) loader.now();
    },
  }, "Hold");

  const loader = context.loader(async () => {
    const answer = await get("events", { kind: query.get("kind"), run: query.get("run"), cursor: query.get("cursor"), limit: 60 }, context.signal);
    const found = items(answer);
    keyed(body, found, (one) => one.id, (one) =>
      h("tr", null,
        h("td.nowrap", { title: one.time }, shortTime(one.time)),
        h("td", null, h("span.mono.small", null, one.kind), one.payload === null || one.payload === undefined ? null
          : h("details", null, h("summary", null, "Payload"), json(one.payload, "Payload"))),
        h("td.main-cell", null, one.state ? badge(one.state, one.name) : null,
          one.run_id ? h("a.sub", { href: `#/runs/${part(one.run_id)}` }, `run ${shortId(one.run_id)}`) : null),
        h("td.wide.message-cell", null, one.message)));
    box.hidden = !found.length;
    fill(none, found.length ? null : empty(query.get("kind") || query.get("run") ? "No event is like that." : "Nothing has happened yet."));
    const next = answer.next_cursor;
    fill(pages, pager({
      label: "Pages of events", first: !query.get("cursor"), next: Boolean(next),
      onFirst: () => change({ cursor: null }), onNext: () => change({ cursor: next }),
    }));
    pages.hidden = !query.get("cursor") && !next;
  }, 2);
  loader.now();
  context.onLive(() => {
    if (!held && !query.get("cursor")) loader.soon();
  });
  return h("div.page", null, h("header.page-head", null, h("h1", null, "Events")),
    h("div.filters", { role: "search" }, kind, run, hold), box, none, pages);
}
