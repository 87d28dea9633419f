// Automations, and what they have to do and have done.

import { get, items, mayAct, part, post, remove } from "../api.js";
import { fill, h, icon, keyed } from "../dom.js";
import { duration, number, words } from "../format.js";
import { at, attempt, button, card, confirm, empty, facts, json, pager, runLink, table, tags, when } from "../parts.js";

const STATES = { delivered: "COMPLETED", failed: "FAILED", pending: "PENDING", sending: "RUNNING", suppressed: "CANCELLED" };

/** A trigger in some words. */
export function triggerText(trigger) {
  const expect = (what) => (Array.isArray(what) ? what.join(" or ") : String(what ?? ""));
  const list = trigger?.triggers ?? [];
  switch (trigger?.type) {
    case "event":
      return `${trigger.threshold > 1 ? `${trigger.threshold} × ` : ""}${expect(trigger.expect)}${trigger.within ? ` within ${duration(trigger.within)}` : ""}`;
    case "absence":
      return `no ${expect(trigger.expect)}${trigger.within ? ` within ${duration(trigger.within)}` : ""}`;
    case "duration":
      return `longer than ${duration(trigger.seconds ?? trigger.longer_than ?? trigger.within)} in ${expect(trigger.state ?? trigger.states ?? trigger.expect)}`;
    case "all": return list.map(triggerText).join(" and ");
    case "any": return list.map(triggerText).join(" or ");
    case "sequence": return list.map(triggerText).join(", then ");
    default: return String(trigger?.type ?? "?");
  }
}

const actionText = (action) => `${words(String(action.type).replaceAll("-", "_").toUpperCase())}${action.deployment || action.channel || action.name ? ` ${action.deployment ?? action.channel ?? action.name}` : ""}`;

function toggle(one, done) {
  return button(one.enabled ? "Switch off" : "Switch on", async () => {
    await attempt(() => post(`automations/${part(one.name)}/${one.enabled ? "disable" : "enable"}`), one.enabled ? "It is off." : "It is on.");
    done();
  }, { kind: "small", "aria-label": `${one.enabled ? "Switch off" : "Switch on"} ${one.name}` });
}

const onOff = (one) => h("span.flag", { class: one.enabled ? "good" : "" }, one.enabled ? "On" : "Off");

export function automations(context) {
  context.title("Automations");
  const body = h("tbody");
  const none = h("div");
  const box = table("Automations", [["Automation"], ["When", "wide"], ["Then", "wide"], ["Fired", "right"], ["Last", "middle"], [""], ["", "right"]], body);
  const loader = context.loader(async () => {
    const list = items(await get("automations", null, context.signal));
    keyed(body, list.slice(0, 150), (one) => one.name, (one) =>
      h("tr", null,
        h("td.main-cell", null, h("a", { href: at(`automations/${part(one.name)}`) }, one.name), h("span.sub", null, one.description)),
        h("td.wide.message-cell", null, triggerText(one.trigger)),
        h("td.wide.message-cell", null, one.actions.slice(0, 3).map((action) => h("div", null, actionText(action)))),
        h("td.right", null, number(one.fired)),
        h("td.middle", null, when(one.fired_at)),
        h("td", null, onOff(one)),
        h("td.right", null, mayAct() ? toggle(one, loader.now) : null)));
    box.hidden = !list.length;
    fill(none, list.length ? null : empty("There are no automations: engine.automate(...), [[automations]] in asyncflow.toml, or POST /api/automations."));
  }, 3);
  const sent = deliveries(context, null);
  loader.now();
  context.onLive((message) => {
    if (!message.missed && !message.events.some((event) => /^(automation|delivery)\./.test(event.kind))) return;
    loader.soon();
    sent.soon();
  });
  return h("div.page", null, h("header.page-head", null, h("h1", null, "Automations")), box, none, sent.node);
}

export function automation(context) {
  const [, name] = context.parts;
  context.title(name);
  const head = h("div");
  const body = h("div.stack");
  const loader = context.loader(async () => {
    let one;
    try {
      one = await get(`automations/${part(name)}`, null, context.signal);
    } catch (error) {
      if (error.status !== 404) throw error;
      fill(head, h("h1", null, "There is no such automation"));
      return;
    }
    fill(head,
      h("p.crumbs", null, h("a", { href: "#/automations" }, "Automations")),
      h("header.page-head", null, h("h1", null, one.name), onOff(one), h("span.spring"),
        mayAct()
          ? h("div.actions", null, toggle(one, loader.now),
              button("Delete", () => confirm("Delete this automation?", "What it has sent stays in the list of deliveries.", "Delete", async () => {
                await remove(`automations/${part(name)}`);
                location.hash = "#/automations";
                return true;
              }), { kind: "danger-text" }))
          : null),
      one.description ? h("p.message", null, one.description) : null,
      facts([["When", triggerText(one.trigger)], ["Fired", number(one.fired)], ["Last", one.fired_at ? when(one.fired_at) : null],
        ["Source", one.source], ["Tags", one.tags.length ? tags(one.tags) : null]]));
    if (!body.children.length) {
      fill(body, h("div.grid.two", null, card("Trigger", json(one.trigger, "Trigger")), card("Actions", json(one.actions, "Actions"))), sent.node);
    }
  }, 3);
  const sent = deliveries(context, name);
  loader.now();
  context.onLive((message) => {
    if (!message.missed && !message.events.some((event) => /^(automation|delivery)\./.test(event.kind))) return;
    loader.soon();
    sent.soon();
  });
  return h("div.page", null, head, body);
}

function deliveries(context, name) {
  const body = h("tbody");
  const none = h("div");
  const pages = h("div");
  let cursors = [null];
  const box = table("Deliveries", [["State"], name ? null : ["Automation"], ["What"], ["Run", "wide"], ["Attempts", "wide right"], ["Error or reply", "wide"], ["When", "middle"]].filter(Boolean), body);
  const state = h("select", {
    "aria-label": "State of deliveries",
    onchange: () => {
      context.setQuery({ state: state.value });
      cursors = [null];
      loader.now();
    },
  }, h("option", { value: "" }, "Any state"), Object.keys(STATES).map((one) => h("option", { value: one }, words(one.toUpperCase()))));
  state.value = context.query.get("state") ?? "";
  const loader = context.loader(async () => {
    const answer = await get("deliveries", { automation: name, state: state.value, limit: 25, cursor: cursors.at(-1) }, context.signal);
    const found = items(answer);
    keyed(body, found, (one) => one.id, (one) =>
      h("tr", null,
        h("td", null, h("span.badge", { dataset: { state: STATES[one.state] } }, icon(STATES[one.state]), words(one.state.toUpperCase()))),
        name ? null : h("td.main-cell", null, h("a", { href: at(`automations/${part(one.automation)}`) }, one.automation)),
        h("td", null, words(one.kind.replaceAll("-", "_").toUpperCase()), one.channel ? h("span.sub", null, one.channel) : null),
        h("td.wide", null, one.run_id ? runLink({ id: one.run_id }, "run") : null),
        h("td.wide.right", null, number(one.attempts)),
        h("td.wide.message-cell", null, one.error || one.reply),
        h("td.middle", null, when(one.ended_at ?? one.next_at ?? one.created_at))));
    box.hidden = !found.length;
    fill(none, found.length ? null : empty(state.value ? "No delivery is like that." : "Nothing was delivered yet."));
    fill(pages, pager({
      label: "Pages of deliveries", first: cursors.length === 1, next: Boolean(answer.next_cursor),
      onFirst: () => { cursors = [null]; loader.now(); },
      onNext: () => { cursors.push(answer.next_cursor); loader.now(); },
    }));
    pages.hidden = cursors.length === 1 && !answer.next_cursor;
  }, 3);
  loader.now();
  return { node: card("Deliveries", [box, none, pages], state), soon: loader.soon };
}
