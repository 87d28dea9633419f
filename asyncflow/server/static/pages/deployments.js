// Deployments: what runs by itself, when it does next, and what became of each tick.

import { get, items, mayAct, part, post, remove, session } from "../api.js";
import { tellEnd } from "../asked.js";
import { fill, h, icon, keyed } from "../dom.js";
import { hourOf, minuteOf, number, words } from "../format.js";
import { form } from "../schema.js";
import { at, attempt, badge, button, card, confirm, dialog, empty, facts, field, json, pager, runLink, table, tags, took, when } from "../parts.js";

const flag = (text, kind = "") => h("span.flag", { class: kind }, text);

const nextOf = (one) => one.schedules.flatMap((s) => s.next_at).sort()[0] ?? null;
const lateOf = (one) => one.schedules.map((s) => s.late_since).filter(Boolean).sort()[0] ?? null;

export function deployments(context) {
  context.title("Deployments");
  const body = h("tbody");
  const none = h("div");
  const box = table("Deployments", [["Deployment"], ["Schedules", "wide"], ["Next"], ["Tags", "wide"], ["", "right"]], body);
  let list = [];
  const find = h("input", {
    type: "search", class: "grow", placeholder: "Search deployments", "aria-label": "Search deployments", "data-filter": "", value: context.query.get("text") ?? "",
    oninput: () => {
      context.setQuery({ text: find.value.trim() });
      draw();
    },
  });

  function draw() {
    const text = find.value.trim().toLowerCase();
    const found = list.filter((one) => `${one.name} ${one.flow_name} ${one.tags.join(" ")}`.toLowerCase().includes(text));
    keyed(body, found.slice(0, 100), (one) => one.name, (one) =>
      h("tr", null,
        h("td.main-cell", null, h("a", { href: at(`deployments/${part(one.name)}`) }, one.name),
          h("span.sub", null, one.flow_name, one.description ? ` · ${one.description}` : "")),
        h("td.wide", null, one.schedules.slice(0, 3).map((s) => h("div.mono.small", null, s.schedule)), one.schedules.length > 3 ? `+${one.schedules.length - 3}` : null),
        h("td", null, one.paused ? flag("Paused") : lateOf(one) ? flag(["late since ", when(lateOf(one))], "bad") : when(nextOf(one))),
        h("td.wide", null, tags(one.tags.slice(0, 4))),
        h("td.right", null, mayAct() ? runButton(one, "small") : null)));
    box.hidden = !found.length;
    fill(none, found.length ? null : empty(list.length ? "No deployment is like that." : "Nothing is deployed: engine.deploy(...) or asyncflow serve."),
      found.length > 100 ? h("p.muted.small", null, `The first 100 of ${number(found.length)}.`) : null);
  }

  const loader = context.loader(async () => {
    list = items(await get("deployments", null, context.signal));
    draw();
  }, 5);
  loader.now();
  context.every(15, loader.soon);
  context.onLive((message) => {
    if (message.missed || message.events.some((event) => String(event.kind).startsWith("schedule."))) loader.soon();
  });
  return h("div.page", null, h("header.page-head", null, h("h1", null, "Deployments")),
    h("div.filters", { role: "search" }, find), box, none);
}

function runButton(one, kind = "primary") {
  return button("Run…", () => runNow(one), {
    kind,
    "aria-label": `Run ${one.name}`,
    title: session.embedded ? null : "An engine that serves it does it: asyncflow serve, or your service",
  });
}

/** The form for a run of a deployment. */
export function runNow(one) {
  const made = form(one.parameter_schema ?? {}, one.parameters ?? {});
  const name = h("input", { type: "text", autocomplete: "off", maxlength: "200" });
  // Sent twice, by whatever mishap, it still begins one run.
  const key = crypto.randomUUID?.() ?? String(Math.random());
  dialog(`Run ${one.name}`, [
    made.node,
    h("details.more-fields", null, h("summary", null, "More"), field("Name of the run", name, { help: "By default what the flow says." })),
  ], {
    okay: "Run",
    wide: true,
    async submit() {
      const parameters = made.read();
      if (parameters === null) return false;
      const body = { parameters, idempotency_key: `dashboard-${key}` };
      if (name.value.trim()) body.name = name.value.trim();
      const said = await post(`deployments/${part(one.name)}/run`, body);
      tellEnd(said, "It has begun.", { go: true });
      return true;
    },
  });
}

// Of what is so far away the day is told already.
const isFar = (iso) => new Date(iso) - Date.now() > 14 * 86_400_000;
const TICKS = { RUN: "COMPLETED", QUEUED: "PENDING", SKIPPED: "CANCELLED", MISSED: "FAILED" };

export function deployment(context) {
  const [, name] = context.parts;
  context.title(name);
  const head = h("div");
  const body = h("div.stack");
  const schedules = h("tbody");
  const ticks = h("tbody");
  const noTicks = h("div");
  const pages = h("div");
  const recent = h("div.list");
  let cursors = [null];

  const state = h("select", {
    "aria-label": "State of ticks",
    onchange: () => {
      context.setQuery({ ticks: state.value });
      cursors = [null];
      tickLoader.now();
    },
  }, h("option", { value: "" }, "All ticks"), Object.keys(TICKS).map((one) => h("option", { value: one }, words(one))));
  state.value = context.query.get("ticks") ?? "";

  const loader = context.loader(async () => {
    let one;
    try {
      one = await get(`deployments/${part(name)}`, null, context.signal);
    } catch (error) {
      if (error.status !== 404) throw error;
      fill(head, h("h1", null, "There is no such deployment"));
      fill(body, h("a", { href: "#/deployments" }, "All deployments"));
      return;
    }
    show(one);
  }, 3);

  function show(one) {
    const print = JSON.stringify(one);
    if (show.print === print) return;
    show.print = print;
    const pause = (schedule, paused, said) => () =>
      attempt(() => post(`deployments/${part(name)}/${paused ? "resume" : "pause"}`, schedule ? { schedule } : {}), said).then(() => {
        show.print = null;
        loader.now();
      });
    fill(
      head,
      h("p.crumbs", null, h("a", { href: "#/deployments" }, "Deployments")),
      h("header.page-head", null, h("h1", null, one.name), one.paused ? flag("Paused") : null, h("span.spring"),
        mayAct()
          ? h("div.actions", null,
              button(one.paused ? "Start again" : "Pause", pause(null, one.paused, one.paused ? "Its schedules run again." : "It starts no runs by itself.")),
              button("Delete", () => confirm("Delete this deployment?", "Its schedules end; its runs stay.", "Delete", async () => {
                await remove(`deployments/${part(name)}`);
                location.hash = "#/deployments";
                return true;
              }), { kind: "danger-text" }),
              runButton(one))
          : null),
      one.description ? h("p.message", null, one.description) : null,
      facts([
        ["Flow", h("a", { href: at("runs", { flow: one.flow_name }) }, one.flow_name)],
        ["Runs", h("a", { href: at("runs", { deployment: one.name }) }, "of this deployment")],
        ["Overlap", one.overlap === "allow" ? "allow" : `${one.overlap}, at most ${one.concurrency_limit}`],
        ["Catch-up", one.catchup],
        ["Version", one.version],
        ["Source", one.source],
        ["Tags", one.tags.length ? tags(one.tags) : null],
        ["Changed", one.updated_at ? when(one.updated_at) : null],
      ]),
    );
    keyed(schedules, one.schedules, (s) => s.name, (s) =>
      h("tr", null,
        h("td.main-cell", null, s.name, s.schedule === s.name ? null : h("span.sub.mono", null, s.schedule)),
        h("td", null, s.paused || one.paused ? flag(s.reason ? `Paused: ${s.reason}` : "Paused")
          : s.late_since ? flag(["late since ", when(s.late_since)], "bad")
          : s.next_at.slice(0, 3).map((t) => h("div", null, when(t), h("span.muted.small.middle", null, ` · ${isFar(t) ? hourOf(t) : minuteOf(t)}`)))),
        h("td.wide", null, Object.keys(s.parameters).length ? h("code", null, JSON.stringify(s.parameters)) : null),
        h("td.right", null, mayAct()
          ? button(s.paused ? "Start again" : "Pause", pause(s.name, s.paused, s.paused ? "It runs again." : "It is paused."), { kind: "small", "aria-label": `${s.paused ? "Start again" : "Pause"} ${s.name}` })
          : null)));
    fill(parameters, Object.keys(one.parameters).length ? json(one.parameters, "Parameters") : h("p.muted", null, "None are set."));
    schedulesCard.hidden = !one.schedules.length;
  }

  const tickLoader = context.loader(async () => {
    const answer = await get(`deployments/${part(name)}/ticks`, { state: state.value, limit: 20, cursor: cursors.at(-1) }, context.signal);
    const found = items(answer);
    keyed(ticks, found, (t) => `${t.schedule}${t.tick}`, (t) =>
      h("tr", null,
        h("td", null, h("span.badge", { dataset: { state: TICKS[t.state] } }, icon(TICKS[t.state]), words(t.state), t.count > 1 ? ` × ${number(t.count)}` : "")),
        h("td", null, when(t.tick)),
        h("td.wide", null, t.schedule),
        h("td.message-cell", null, t.run_id ? runLink({ id: t.run_id }, t.backfill ? "run (backfill)" : "run") : null, t.run_id && t.reason ? ": " : null, t.reason)));
    tickBox.hidden = !found.length;
    fill(noTicks, found.length ? null : empty(state.value ? "No tick is like that." : "No tick yet."));
    fill(pages, pager({
      label: "Pages of ticks", first: cursors.length === 1, next: Boolean(answer.next_cursor),
      onFirst: () => { cursors = [null]; tickLoader.now(); },
      onNext: () => { cursors.push(answer.next_cursor); tickLoader.now(); },
    }));
    pages.hidden = cursors.length === 1 && !answer.next_cursor;
  }, 3);

  const recentLoader = context.loader(async () => {
    const found = items(await get("runs", { deployment: name, parent: "any", limit: 6 }, context.signal));
    if (!found.length) fill(recent, empty("It has not run yet."));
    else keyed(recent, found, (run) => run.id, (run) =>
      h("div.item", null, badge(run.state, run.state_name), h("div.item-main", null, runLink(run), h("span.sub", null, run.message)),
        h("div.item-end", null, took(run), when(run.started_at ?? run.created_at))));
  }, 3);

  const parameters = h("div");
  const tickBox = table("Ticks", [["What became of it"], ["Tick"], ["Schedule", "wide"], ["Run or reason"]], ticks);
  const schedulesCard = card("Schedules", table("Schedules", [["Schedule"], ["Next"], ["Parameters", "wide"], ["", "right"]], schedules));
  fill(body, schedulesCard, h("div.grid.two", null, card("Recent runs", recent), card("Parameters", parameters)),
    card("Ticks", [tickBox, noTicks, pages], state));
  loader.now();
  tickLoader.now();
  recentLoader.now();
  context.every(10, loader.soon);
  context.onLive((message) => {
    if (!message.missed && !message.events.length) return;
    loader.soon();
    tickLoader.soon();
    recentLoader.soon();
  });
  return h("div.page", null, head, body);
}
