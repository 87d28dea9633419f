// What this server cannot do itself, for want of code, it asks an engine for. That is followed here
// to its end, whatever it is, and told: every wait has one.

import { get, items, part } from "./api.js";
import { h } from "./dom.js";
import { number } from "./format.js";
import { at, complain, toast } from "./parts.js";

const EVERY = 700;
// How long an engine that has taken it may be at it, once the time for taking it is over.
const REST = 60_000;
const WAITING = "It is asked for: waiting for an engine…";
const TAKEN = "An engine is at it…";

/**
 * Tell what has come of what a button asked for; resolves when it has ended.
 * @param {object} said what the server has answered
 * @param {string} done what is told when it is done
 * @param {object} options go: whether to go to the run that was begun at once
 */
export async function tellEnd(said, done, { go = false } = {}) {
  if (!said?.command) {
    toast(done);
    if (go && said?.run) location.hash = at(`runs/${part(said.run.id)}`);
    return;
  }
  const waits = toast(WAITING, "waiting");
  try {
    const [end] = await ends([said.command], (one) => {
      if (one.state === "TAKEN") waits.say(TAKEN);
    });
    if (end.state === "DONE" && end.made_run_id && !isHere(end.made_run_id)) {
      toast([done, " ", link(end.made_run_id)], "lasting");
    } else if (end.state === "DONE") toast(done);
    else toast(why(end), "bad");
  } catch (error) {
    complain(error);
  } finally {
    waits.remove();
  }
}

/** The same of many: how many were done, and why others were not. */
export async function tellEnds(asked, told) {
  const waits = toast(`${number(asked.length)} are asked for: waiting for an engine…`, "waiting");
  try {
    const found = await ends(asked, () => {});
    const failed = found.filter((one) => one.state !== "DONE");
    told(found.length - failed.length, failed.map(why));
  } catch (error) {
    complain(error);
  } finally {
    waits.remove();
  }
}

const isHere = (id) => location.hash.startsWith(`#/runs/${id}`);
const link = (id) => h("a", { href: at(`runs/${part(id)}`) }, "Open the run");

const isOver = (one) => Boolean(one.ended_at) || one.state === "EXPIRED";

function why(one) {
  if (isOver(one)) return one.detail || one.state;
  return one.state === "TAKEN"
    ? "An engine has taken it, and not said yet what came of it: the events will tell."
    : "It is not known what came of it: the server does not answer.";
}

/** Commands as they have ended, or as they are when there is no more use in waiting. */
async function ends(asked, hear) {
  const found = new Map(asked.map((one) => [one.id, one]));
  // By the clock of the server; ours only counts.
  const patience = Math.max(...asked.map((one) => Date.parse(one.expires_at) - Date.parse(one.asked_at)));
  const until = performance.now() + patience + REST;
  let open = asked.filter((one) => !isOver(one));
  while (open.length && performance.now() < until) {
    await new Promise((go) => setTimeout(go, EVERY));
    try {
      for (const one of await looked(open)) {
        if (!found.has(one.id)) continue;
        found.set(one.id, one);
        hear(one);
      }
    } catch (error) {
      // A server that is away for a moment may be back for the rest of the time.
      if (error.status !== 0) throw error;
    }
    open = [...found.values()].filter((one) => !isOver(one));
  }
  return [...found.values()];
}

async function looked(open) {
  if (open.length === 1) return [await get(`commands/${part(open[0].id)}`)];
  return items(await get("commands", { limit: 500 }));
}
