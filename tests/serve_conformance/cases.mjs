// One case with @fal-ai/client as it was released: node cases.mjs CASE BASE MODE; prints one JSON document.
import { createRequire } from "node:module";
const { fal, createFalClient, ValidationError, ApiError } = createRequire(process.env.CLIENTS + "/")("@fal-ai/client");
const [name, BASE, mode, extra] = process.argv.slice(2);
const APP = "fal-ai/stable-audio-3-trainer", DATA = { audio_data_url: "https://example.com/a.zip" };
const local = (url) => String(url).replace(/^https:\/\/(queue\.fal\.run|fal\.run|rest\.fal\.ai)/, BASE);

function client() {
  if (mode === "middleware") fal.config({ credentials: "x", requestMiddleware: async (r) => ({ ...r, url: local(r.url) }) });
  else if (mode === "fetch") return createFalClient({ credentials: "x", fetch: (u, o) => fetch(local(u), o) });
  else fal.config({ credentials: "x", proxyUrl: { url: `${BASE}/api/fal/proxy`, when: "always" } });
  return fal;
}
const c = client();
const told = (error) => ({
  kind: error.constructor.name, status: error.status, message: error.message, body: error.body,
  validation: error instanceof ValidationError, api: error instanceof ApiError,
  fields: error instanceof ValidationError ? Object.fromEntries((error.body.detail || []).map((d) => [d.loc.at(-1), error.getFieldErrors(d.loc.at(-1)).length])) : {},
});
const caught = (promise) => promise.then((value) => ({ value }), (error) => told(error));

async function subscribed(input, options = {}) {
  const updates = [];
  const done = await c.subscribe(APP, { input: { ...DATA, ...input }, logs: true, pollInterval: 100, onQueueUpdate: (u) => updates.push(JSON.parse(JSON.stringify(u))), ...options });
  return { output: done.data, requestId: done.requestId, updates };
}

const cases = {
  subscribe: () => subscribed({}),
  subscribe_streaming: () => subscribed({}, { mode: "streaming" }),
  logs_off: () => subscribed({}, { logs: false }),
  by_hand: async () => {
    const { request_id: requestId } = await c.queue.submit(APP, { input: DATA });
    const first = await c.queue.status(APP, { requestId, logs: true });
    await c.queue.subscribeToStatus(APP, { requestId, pollInterval: 100 });
    const status = await c.queue.status(APP, { requestId, logs: true });
    return { first, status, output: (await c.queue.result(APP, { requestId })).data };
  },
  violation: () => caught(c.subscribe(APP, { input: { ...DATA, ...JSON.parse(extra) } })),
  nulls: () => subscribed({ model: null, rank: null, duration: null, include: null, seed: null, pre_encode: null, unknown: 1 }),
  failing: () => caught(subscribed({ seed: Number(extra) })),
  cancel: async () => {
    const states = {};
    const running = (await c.queue.submit(APP, { input: { ...DATA, seed: 1 } })).request_id;
    const other = (await c.queue.submit(APP, { input: { ...DATA, seed: 1, rank: 2 } })).request_id;
    const queued = (await c.queue.submit(APP, { input: { ...DATA, seed: 1, rank: 3 } })).request_id;
    while ((await c.queue.status(APP, { requestId: running })).status !== "IN_PROGRESS");
    for (const [state, requestId] of Object.entries({ queued, running, finished: running, unknown: "0", other })) {
      states[state] = (await caught(c.queue.cancel(APP, { requestId }))).status ?? "ok";
      if (state !== "unknown") await c.queue.subscribeToStatus(APP, { requestId, pollInterval: 100 });
    }
    states.result = (await caught(c.queue.result(APP, { requestId: running }))).status;
    return states;
  },
  time_out: async () => {
    let id;
    const error = await caught(c.subscribe(APP, { input: { ...DATA, seed: 1 }, timeout: 1500, pollInterval: 100, onEnqueue: (found) => { id = found; } }));
    await c.queue.subscribeToStatus(APP, { requestId: id, pollInterval: 100 });
    return { error, status: await c.queue.status(APP, { requestId: id }), id };
  },
  long: () => subscribed({ seed: 5 }),
  duplicate: async () => {
    const input = { ...DATA, seed: 5, rank: 7 };
    return (await Promise.all([1, 2, 3].map(() => c.queue.submit(APP, { input })))).map((s) => s.request_id);
  },
  run: () => c.run(APP, { input: DATA }).then(({ data, requestId }) => ({ output: data, requestId })),
  upload: async () => {
    const url = await c.storage.upload(new File([new Uint8Array(Number(extra)).fill(7)], "clips.zip", { type: "application/zip" }));
    const content = new Uint8Array(await (await fetch(url)).arrayBuffer());
    return { url, bytes: content.length, same: content.every((byte) => byte === 7) };
  },
  blob: async () => {
    const done = await subscribed({ audio_data_url: new Blob(["zip"], { type: "application/zip" }) });
    return done;
  },
  webhook: async () => (await c.queue.submit(APP, { input: { ...DATA, seed: Number(extra.split(" ")[0]) }, webhookUrl: extra.split(" ")[1] })).request_id,
};
console.log(JSON.stringify(await cases[name]()));
process.exit(0);
