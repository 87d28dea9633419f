// The dashboard: its frame, its pages by the hash of the address, its keys.

import { begin, session, signIn } from "./api.js";
import { repaint } from "./canvas.js";
import { fill, h, icon } from "./dom.js";
import * as live from "./live.js";
import { attention } from "./pages/attention.js";
import { automation, automations } from "./pages/automations.js";
import { deployment, deployments } from "./pages/deployments.js";
import { events } from "./pages/events.js";
import { home } from "./pages/home.js";
import { limits } from "./pages/limits.js";
import { run } from "./pages/run.js";
import { runs } from "./pages/runs.js";
import { variables } from "./pages/variables.js";
import { at, button, complain, dialog, field, iconButton, tick, toastBox } from "./parts.js";

const PAGES = [
  ["", home], ["runs", runs], ["runs/*", run], ["runs/*/*", run], ["attention", attention], ["deployments", deployments],
  ["deployments/*", deployment], ["automations", automations], ["automations/*", automation],
  ["events", events], ["limits", limits], ["variables", variables],
];
const NAVIGATION = [
  ["", "Home", "home", "h"], ["runs", "Runs", "runs", "r"],
  ["attention", "Attention", "warn", "n"],
  ["deployments", "Deployments", "deployments", "d"], ["automations", "Automations", "automations", "a"],
  ["events", "Events", "events", "e"], ["limits", "Limits", "limits", "l"],
  ["variables", "Variables", "variables", "v"],
];

const main = h("main.main", { id: "main", tabindex: "-1" });
const dot = h("span.live", { role: "status", dataset: { live: "off" } }, h("span.live-text", null, "not live"));
const links = NAVIGATION.map(([path, title, name]) =>
  h("a.nav-link", { href: at(path), dataset: { path } }, icon(name), title),
);
const nav = h("nav.nav", { "aria-label": "Pages", id: "nav" }, links);
const version = h("span.muted.small");
let leave = new AbortController();

// --- theme -------------------------------------------------------------------------------------

const THEMES = ["auto", "light", "dark"];
const themeButton = iconButton("theme", "Theme", () => {
  const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length];
  try {
    localStorage.setItem("asyncflow.theme", next);
  } catch {
    // Where nothing may be kept, it holds until the page is left.
  }
  paintTheme(next);
});

function theme() {
  try {
    const kept = localStorage.getItem("asyncflow.theme");
    return THEMES.includes(kept) ? kept : "auto";
  } catch {
    return document.documentElement.dataset.theme ?? "auto";
  }
}

function paintTheme(name) {
  document.documentElement.dataset.theme = name;
  const text = `Theme: ${name === "auto" ? "as the system" : name}`;
  themeButton.setAttribute("aria-label", text);
  themeButton.title = text;
  repaint();
}

// --- pages -------------------------------------------------------------------------------------

function place() {
  const [path, search = ""] = location.hash.replace(/^#\/?/, "").split("?", 2);
  let parts = [];
  try {
    parts = path.split("/").filter(Boolean).map(decodeURIComponent);
  } catch {
    // An address that was cut off: the home page.
  }
  return { parts, query: new URLSearchParams(search) };
}

function show(focus = true) {
  leave.abort();
  leave = new AbortController();
  const { signal } = leave;
  const { parts, query } = place();
  const found = PAGES.find(([pattern]) => {
    const wanted = pattern === "" ? [] : pattern.split("/");
    return wanted.length === parts.length && wanted.every((one, i) => one === "*" || one === parts[i]);
  });
  for (const link of links) {
    if (link.dataset.path === (parts[0] ?? "")) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  nav.classList.remove("open");
  const context = {
    parts,
    query,
    signal,
    /** Name the page, in its head and in the tab. */
    title(text) {
      document.title = `${text} · asyncflow`;
    },
    /** Keep the filters in the address; null and "" leave one out. */
    setQuery(changes) {
      for (const [name, value] of Object.entries(changes)) {
        query.delete(name);
        for (const one of Array.isArray(value) ? value : [value]) {
          if (one !== null && one !== undefined && one !== "") query.append(name, one);
        }
      }
      const text = query.toString();
      history.replaceState(null, "", `#/${parts.map(encodeURIComponent).join("/")}${text ? `?${text}` : ""}`);
    },
    /** Hear what happens while the page is there. */
    onLive(listener) {
      signal.addEventListener("abort", live.listen(listener));
    },
    every(seconds, work) {
      const timer = setInterval(() => document.hidden || work(), seconds * 1000);
      signal.addEventListener("abort", () => clearInterval(timer));
    },
    /** *load*, so that many calls are few: not twice at once, and at most once in *seconds*. */
    loader(load, seconds = 2) {
      let busy = false;
      let again = false;
      let last = -Infinity;
      let timer = 0;
      signal.addEventListener("abort", () => clearTimeout(timer));
      const go = async () => {
        if (busy) {
          again = true;
          return;
        }
        busy = true;
        last = performance.now();
        try {
          await load();
        } catch (error) {
          if (!signal.aborted) complain(error);
        } finally {
          busy = false;
          if (again && !signal.aborted) {
            again = false;
            soon();
          }
        }
      };
      const soon = () => {
        if (signal.aborted || timer) return;
        const rest = Math.max(0, seconds * 1000 - (performance.now() - last));
        timer = setTimeout(() => {
          timer = 0;
          go();
        }, rest);
      };
      return { now: go, soon };
    },
  };
  const page = found ? found[1](context) : notFound(context);
  fill(main, page);
  if (focus) {
    scrollTo(0, 0);
    main.focus({ preventScroll: true });
  }
}

function notFound(context) {
  context.title("Not found");
  return h("div.page", null, h("h1", null, "There is nothing here"), h("p", null, h("a", { href: "#/" }, "Home")));
}

// --- signing in --------------------------------------------------------------------------------

function askForToken() {
  live.stop();
  leave.abort();
  document.title = "Sign in · asyncflow";
  const token = h("input", { type: "password", autocomplete: "current-password", name: "token" });
  const labelled = field("Token", token, {
    help: "It is in the address that the server printed when it started.",
  });
  const form = h(
    "form.sign-in",
    {
      novalidate: true,
      onsubmit: async (event) => {
        event.preventDefault();
        if (!token.value.trim()) {
          labelled.complain("Give the token.");
          token.focus();
          return;
        }
        try {
          await signIn(token.value.trim());
          await enter();
        } catch (error) {
          labelled.complain(error.status === 401 ? "This is not the token." : error.message);
        }
      },
    },
    h("h1", null, "Sign in"),
    labelled,
    h("button.button.primary", { type: "submit" }, "Sign in"),
  );
  fill(main, h("div.page", null, form));
  token.focus();
}

// --- keys --------------------------------------------------------------------------------------

let gone = -Infinity; // when "g" was pressed

function help() {
  const keys = [
    ...NAVIGATION.map(([, title, , key]) => [["g", key], title]),
    [["/"], "To the filter"], [["t"], "Theme"], [["?"], "This help"], [["Esc"], "Close, or leave a field"],
    [["+", "−", "0"], "Zoom the timeline, when it has the focus"], [["←", "→"], "Move the timeline"],
  ];
  dialog(
    "Keys",
    h("dl.keys", null, keys.map(([list, text]) =>
      h("div", null, h("dt", null, list.map((key) => h("kbd", null, key))), h("dd", null, text)))),
  );
}

document.addEventListener("keydown", (event) => {
  const inField = event.target.closest?.("input, textarea, select, [contenteditable]");
  if (event.key === "Escape" && inField && !event.target.closest("dialog")) {
    event.target.blur();
    return;
  }
  if (inField || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const isSecond = performance.now() - gone < 1500;
  gone = -Infinity;
  if (isSecond) {
    const found = NAVIGATION.find(([, , , key]) => key === event.key);
    if (found) {
      event.preventDefault();
      location.hash = at(found[0]);
    }
    return;
  }
  if (event.key === "g") gone = performance.now();
  else if (event.key === "?") help();
  else if (event.key === "t") themeButton.click();
  else if (event.key === "/") {
    const filter = main.querySelector("[data-filter]");
    if (filter) {
      event.preventDefault();
      filter.focus();
      filter.select?.();
    }
  } else return;
});

// --- begin -------------------------------------------------------------------------------------

const LIVE = { live: "live", waiting: "connecting…", off: "not live" };

function frame() {
  const menu = iconButton("menu", "Menu", () => {
    const open = nav.classList.toggle("open");
    menu.setAttribute("aria-expanded", String(open));
  }, { "aria-controls": "nav", "aria-expanded": "false", class: "menu" });
  document.body.replaceChildren(
    h("a.skip", { href: "#/", onclick: (event) => { event.preventDefault(); main.focus(); } }, "Skip to the content"),
    h(
      "header.side",
      null,
      h("div.brand-row", null,
        h("a.brand", { href: "#/" }, h("span.mark", { "aria-hidden": "true" }), "asyncflow"),
        h("span.spring"), dot, menu),
      nav,
      h("div.side-foot", null, version, h("span.spring"), iconButton("help", "Keys", help), themeButton),
    ),
    main,
    toastBox(),
  );
}

async function enter() {
  fill(version, session.version ? `v${session.version}` : "", session.role === "read" ? " · read only" : "");
  document.body.dataset.role = session.role ?? "";
  live.start((state) => {
    dot.dataset.live = state;
    fill(dot, h("span.live-text", null, LIVE[state]));
  });
  show(false);
}

paintTheme(theme());
frame();
addEventListener("hashchange", () => {
  if (/[#&]token=/.test(location.hash)) begin().then(enter, complain);
  else if (session.role !== null) show();
});
addEventListener("signed-out", () => {
  session.role = null;
  if (!main.querySelector(".sign-in")) askForToken();
});
addEventListener("error", (event) => event.error && complain(event.error));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
setInterval(tick, 1000);
try {
  await begin();
  await enter();
} catch (error) {
  if (error.status === 401 || error.status === 403) askForToken();
  else {
    complain(error);
    fill(main, h("div.page", null, h("h1", null, "The server does not answer"),
      button("Try again", () => location.reload(), { kind: "primary" })));
  }
}
