// Numbers, times and states, for people.

export const STATES = [
  "COMPLETED", "RUNNING", "FAILED", "CRASHED", "CANCELLED", "CANCELLING", "PAUSED", "SCHEDULED",
  "PENDING",
];
export const FINAL = new Set(["COMPLETED", "FAILED", "CANCELLED", "CRASHED"]);

const whole = new Intl.NumberFormat("en");
const day = new Intl.DateTimeFormat("en", { month: "short", day: "numeric" });
const exact = new Intl.DateTimeFormat("en", {
  year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit",
  second: "2-digit", hourCycle: "h23", timeZoneName: "short",
});
const clock = new Intl.DateTimeFormat("en", {
  hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23",
});
const hour = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

export const number = (n) => (Number.isFinite(n) ? whole.format(n) : String(n ?? "–"));
export const exactly = (iso) => (iso ? exact.format(new Date(iso)) : "");
export const clockTime = (iso) => {
  const at = new Date(iso);
  return `${clock.format(at)}.${String(at.getMilliseconds()).padStart(3, "0")}`;
};
/** A time of today by the clock, of another day with its date. */
export function shortTime(iso) {
  const today = new Date().toDateString() === new Date(iso).toDateString();
  return today ? clockTime(iso) : `${day.format(new Date(iso))} ${clock.format(new Date(iso))}`;
}
/** The day and minute of a time. */
export const minuteOf = (iso) => `${day.format(new Date(iso))} ${hour.format(new Date(iso))}`;
export const hourOf = (iso) => hour.format(new Date(iso));
export const dayOf = (iso) => day.format(new Date(iso));

/** "TimedOut" as "Timed out", "COMPLETED" as "Completed". */
export function words(name) {
  const text = String(name ?? "");
  if (/^[A-Z_]+$/.test(text)) return text.charAt(0) + text.slice(1).toLowerCase().replaceAll("_", " ");
  const spaced = text.replace(/([a-z])([A-Z])/g, (_, a, b) => `${a} ${b.toLowerCase()}`);
  return spaced.charAt(0).toUpperCase() + spaced.slice(1);
}

/** How long *seconds* are. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds < 0.001) return "< 1 ms";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = parts.findIndex(([size]) => seconds >= size);
  const [size, unit] = parts[first];
  const [next, small] = parts[first + 1];
  const rest = Math.floor((seconds % size) / next);
  return `${Math.floor(seconds / size)} ${unit}${rest ? ` ${rest} ${small}` : ""}`;
}

/** When that was or will be, seen from now. */
export function ago(iso, now = Date.now()) {
  if (!iso) return "–";
  const seconds = (now - new Date(iso).getTime()) / 1000;
  const size = Math.abs(seconds);
  if (size < 5) return "now";
  let text;
  if (size < 60) text = `${Math.floor(size)} s`;
  else if (size < 3600) text = `${Math.floor(size / 60)} min`;
  else if (size < 86400) text = `${Math.floor(size / 3600)} h`;
  else if (size < 86400 * 14) text = `${Math.floor(size / 86400)} d`;
  else return day.format(new Date(iso));
  return seconds < 0 ? `in ${text}` : `${text} ago`;
}

export function bytes(n) {
  if (n < 1024) return `${number(n)} B`;
  if (n < 1024 ** 2) return `${(n / 1024).toFixed(1)} KiB`;
  return `${(n / 1024 ** 2).toFixed(1)} MiB`;
}

/** JSON as it is written down. */
export function pretty(value) {
  return value === undefined ? "" : JSON.stringify(value, null, 2);
}

/** The name of a level of logging. */
export function level(n) {
  if (n >= 50) return "CRITICAL";
  if (n >= 40) return "ERROR";
  if (n >= 30) return "WARNING";
  if (n >= 20) return "INFO";
  return n >= 10 ? "DEBUG" : "TRACE";
}
