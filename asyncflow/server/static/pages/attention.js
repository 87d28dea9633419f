// What waits for a person: runs that ask, or failed, or that no engine has; late schedules; what
// could not be delivered.

import { get, items, mayAct, part, post } from "../api.js";
import { tellEnd } from "../asked.js";
import { fill, h, icon, keyed } from "../dom.js";
import { at, attempt, badge, button, card, empty, runLink, took, when } from "../parts.js";
import { answer } from "./run.js";

export function attention(context) {
  context.title("Attention");
  const people = h("div.list");
  const orphans = h("div.list");
  const late = h("div.list");
  const failed = h("div.list");
  const cards = {
    people: card("They wait for a person", people),
    orphans: card("No engine has them", orphans),
    late: card("Late schedules", late),
    failed: card("Not delivered", failed, h("a.more", { href: "#/automations" }, "Automations")),
  };
  const none = h("div", { hidden: true }, empty("Nothing needs attention."));
  for (const one of Object.values(cards)) one.hidden = true;

  const loader = context.loader(async () => {
    const [waiting, summary, deliveries] = await Promise.all([
      get("runs", { state: "attention", limit: 200 }, context.signal),
      get("summary", { hours: 1 }, context.signal),
      get("deliveries", { state: "failed", limit: 10 }, context.signal),
    ]);
    const runs = items(waiting);
    const found = {
      people: runs.filter((run) => run.state_name !== "Interrupted"),
      orphans: runs.filter((run) => run.state_name === "Interrupted"),
      late: summary.late ?? [],
      failed: items(deliveries),
    };
    for (const [name, list] of Object.entries(found)) cards[name].hidden = !list.length;
    none.hidden = Object.values(found).some((list) => list.length);
    keyed(people, found.people.slice(0, 60), (run) => run.id, line);
    keyed(orphans, found.orphans.slice(0, 60), (run) => run.id, line);
    fill(late, found.late.map(lateLine));
    keyed(failed, found.failed, (one) => one.id, (one) =>
      h("div.item", null, icon("warn", "bad"),
        h("div.item-main", null,
          h("a", { href: at(`automations/${part(one.automation)}`) }, one.automation),
          h("span.sub", null, one.error)),
        h("div.item-end", null, when(one.ended_at ?? one.created_at))));
  }, 3);

  function line(run) {
    return h("div.item", { dataset: { run: run.id } },
      badge(run.state, run.state_name),
      h("div.item-main", null, runLink(run), h("span.sub", null, run.message)),
      h("div.item-end", null, took(run), when(run.started_at ?? run.created_at)),
      mayAct() ? acts(run) : null);
  }

  function acts(run) {
    const resume = async (event) => {
      const pressed = event.currentTarget;
      pressed.disabled = true;
      const said = await attempt(() => post(`runs/${part(run.id)}/resume`, { expected_state: run.state_name }));
      if (said) await tellEnd(said, "It goes on.");
      pressed.disabled = false;
      loader.now();
    };
    return h("div.item-acts", null, run.state_name === "Paused"
      ? button("Answer…", () => answer(run, loader), { kind: "small", "aria-label": `Answer ${run.name}` })
      : button(run.state_name === "NeedsAttention" ? "Try again" : "Resume", resume, { kind: "small", "aria-label": `Resume ${run.name}` }));
  }

  loader.now();
  context.onLive(loader.soon);
  context.every(15, loader.soon);
  return h("div.page", null, h("header.page-head", null, h("h1", null, "Attention")), Object.values(cards), none);
}

/** A schedule that is late. */
export const lateLine = (one) =>
  h("div.item", null, icon("warn", "bad"),
    h("div.item-main", null,
      h("a", { href: at(`deployments/${part(one.deployment)}`) }, one.deployment),
      h("span.sub", null, `schedule ${one.schedule}: no engine has it, or it is stuck`)),
    h("div.item-end", null, when(one.late_since)));
