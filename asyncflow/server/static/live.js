// What happens, as the server tells it: one stream for the whole tab, closed while nobody looks at
// the tab, since a browser opens only six connections to a server.

import { address } from "./api.js";

const listeners = new Set();
const HIDDEN = 60_000;
let source = null;
let wait = 1000;
let again = 0;
let hiding = 0;
let tell = () => {};
let wanted = false;

/** Begin; *onState* is told "live", "waiting" or "off". */
export function start(onState) {
  tell = onState;
  wanted = true;
  open();
  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiding);
    if (document.hidden) {
      hiding = setTimeout(() => close("off"), HIDDEN);
    } else if (source === null && wanted) {
      open();
      emit({ events: [], missed: true });
    }
  });
}

export function stop() {
  wanted = false;
  close("off");
}

/** Call *listener* with each message; gives what ends that. */
export function listen(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function emit(message) {
  for (const listener of [...listeners]) listener(message);
}

function close(state) {
  clearTimeout(again);
  source?.close();
  source = null;
  tell(state);
}

function open() {
  clearTimeout(again);
  const mine = new EventSource(address("stream"));
  source = mine;
  let lost = false;
  mine.addEventListener("open", () => {
    wait = 1000;
    tell("live");
    if (lost) emit({ events: [], missed: true });
    lost = false;
  });
  mine.addEventListener("change", (event) => {
    try {
      const said = JSON.parse(event.data);
      emit({ events: said.events ?? [], missed: Boolean(said.more) });
    } catch {
      emit({ events: [], missed: true });
    }
  });
  mine.addEventListener("error", () => {
    if (source !== mine) return;
    lost = true;
    tell("waiting");
    if (mine.readyState === EventSource.CLOSED) {
      // The browser gives up on an error of HTTP; we do not.
      source = null;
      clearTimeout(again);
      again = setTimeout(() => {
        if (!wanted || source !== null || document.hidden) return;
        open();
        emit({ events: [], missed: true });
      }, wait);
      wait = Math.min(wait * 2, 30_000);
    }
  });
}
