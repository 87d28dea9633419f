// What is waited for, and who holds it: sentences of the server with links to what they name.

import { part } from "./api.js";
import { h, icon } from "./dom.js";
import { number, words } from "./format.js";
import { at, when } from "./parts.js";

const FEW = 5;

/**
 * Why something is not moving, as a banner; null if it waits for nothing.
 * @param {string} id of the run that is shown, whose name need not be told
 */
export function waitBanner(waits, id, title = "Why is this not moving?") {
  if (!waits?.length) return null;
  return h("section.banner", { "aria-label": title }, icon("SCHEDULED"),
    h("div.banner-main", null, h("strong", null, title), waitList(waits, id)));
}

function waitList(waits, id) {
  return h("ul.waits", null, waits.map((one) =>
    h("li", { dataset: { kind: one.kind } }, h("p", null, one.head), about(one, id))));
}

function about(one, id) {
  const lines = [];
  const holders = one.limit?.holders ?? [];
  if (holders.length || one.limit?.more) lines.push(["Held by", holderList(holders, one.limit.more, FEW, id)]);
  if (one.on?.length) lines.push(["These", [one.on.map((thing) => h("li", null, thingLink(thing))), rest(one.more)]]);
  const who = (one.task_runs ?? []).filter((thing) => thing.seq !== null);
  if (who.length) lines.push([one.calls > who.length ? "Waiting, among others" : "Waiting", who.map((thing) => h("li", null, thingLink(thing)))]);
  if (one.since) lines.push(["Since", h("li", null, when(one.since))]);
  if (one.until) lines.push(["Until", h("li", null, when(one.until))]);
  if (!lines.length) return null;
  return h("dl.about-wait", null, lines.map(([title, list]) =>
    h("div", null, h("dt", null, title), h("dd", null, h("ul.names", null, list)))));
}

/** Who holds units of a limit, each with a link to it. */
export function holderList(holders, more = 0, most = FEW, id = null) {
  const shown = holders.slice(0, most);
  return [shown.map((one) => h("li", null, holder(one, id))), rest(more + holders.length - shown.length)];
}

const rest = (more) => (more > 0 ? h("li.muted", null, `and ${number(more)} more`) : null);

function holder(one, id) {
  const units = one.units === 1 ? null : h("span.muted", null, ` (${number(one.units)})`);
  if (!one.run_id) return [one.name ?? `engine ${one.engine}`, units];
  const of = one.seq !== null && one.run_name && one.run_id !== id
    ? [" of ", h("a", { href: at(`runs/${part(one.run_id)}`) }, one.run_name)]
    : null;
  const since = one.since ? h("span.muted", null, ", ", when(one.since)) : null;
  return [thingLink({ ...one, name: one.name ?? one.run_name }), of, units, since];
}

/** A link to a task run, a task of a run, or a run. */
function thingLink(one) {
  const left = one.left ? h("span.muted", null, ` (${number(one.left)} left)`) : null;
  const state = one.state_name ? h("span.muted", null, ` (${words(one.state_name).toLowerCase()})`) : null;
  if (!one.run_id) return [one.name, left, state];
  const query = one.seq !== null && one.seq !== undefined ? { open: one.seq } : one.task ? { task: one.task } : null;
  return [h("a", { href: at(`runs/${part(one.run_id)}`, query) }, one.name), left, state];
}
