// Asks the server. All addresses are relative to the page, so that the dashboard can be mounted
// anywhere.

const BASE = new URL(".", location.href);

/** Who looks: "admin" or "read"; whether the server can begin runs; its version. */
export const session = { role: null, embedded: true, version: "" };

export class ApiError extends Error {
  constructor(status, title, detail) {
    super(detail || title);
    this.status = status;
    this.title = title;
  }
}

export function address(path, query) {
  const url = new URL(`api/${path}`, BASE);
  for (const [name, value] of Object.entries(query ?? {})) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") url.searchParams.append(name, one);
    }
  }
  return url;
}

async function ask(method, path, { query, body, signal } = {}) {
  const headers = { Accept: "application/json" };
  if (method !== "GET") {
    headers["X-Asyncflow"] = "1";
    headers["Content-Type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(address(path, query), {
      method,
      headers,
      body: method === "GET" ? undefined : JSON.stringify(body ?? {}),
      credentials: "same-origin",
      cache: "no-store",
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "Not reachable", "The server does not answer.");
  }
  const text = await answer.text();
  let said = null;
  if (text) {
    try {
      said = JSON.parse(text);
    } catch {
      if (answer.ok) throw new ApiError(answer.status, "Unreadable", "The answer is no JSON.");
    }
  }
  if (answer.ok) return said;
  if (answer.status === 401) dispatchEvent(new Event("signed-out"));
  throw new ApiError(answer.status, said?.title ?? `Error ${answer.status}`, said?.detail ?? "");
}

export const get = (path, query, signal) => ask("GET", path, { query, signal });
export const post = (path, body) => ask("POST", path, { body });
export const put = (path, body) => ask("PUT", path, { body });
export const remove = (path) => ask("DELETE", path, {});

/** The items of a list, whether it comes in pages or not. */
export const items = (answer) => (Array.isArray(answer) ? answer : (answer?.items ?? []));

/** A part of a path. */
export const part = (text) => encodeURIComponent(text);

/** Begin a session with the token of the address, if there is one, and learn who looks. */
export async function begin() {
  const found = /[#&]token=([^&]+)/.exec(location.hash);
  if (found) {
    const token = decodeURIComponent(found[1]);
    const rest = location.hash.replace(/[#&]token=[^&]+/, "");
    // It goes from the address and from the history before anything else is done with it.
    history.replaceState(null, "", rest.startsWith("#/") ? rest : "#/");
    await signIn(token);
  }
  if (session.role === null) learn(told() ?? (await get("me")));
}

/** What the server has put into the page for whoever was known when it was asked for. */
function told() {
  const found = document.querySelector("meta[name=asyncflow-session]");
  found?.remove(); // once: whoever signs in later is somebody else
  return found ? JSON.parse(found.content) : null;
}

export async function signIn(token) {
  learn(await post("session", { token }));
}

function learn(said) {
  if (!said) return;
  session.role = said.role ?? session.role;
  session.embedded = said.embedded ?? session.embedded;
  session.version = said.version ?? session.version;
}

export const mayAct = () => session.role === "admin";
