// What outlives a reload of this page: the form (in this browser), and what waits or runs (in this tab).
// Pictures to start from are files: they wait in IndexedDB, under the key of their job.

const FORM = "omnimuse-form";
const JOBS = "omnimuse-jobs";
const STORE = "waiting";

/** A key under which the server knows a job again; any 128 random bits. */
export const newKey = () => [...crypto.getRandomValues(new Uint8Array(16))]
  .map((byte) => byte.toString(16).padStart(2, "0")).join("");

/** The form as it was left, or null: {model, kind, prompt, fields}. */
export const readForm = () => parsed(localStorage.getItem(FORM));
export const keepForm = (form) => localStorage.setItem(FORM, JSON.stringify(form));

function parsed(text) {
  try {
    return JSON.parse(text ?? "null");
  } catch {
    return null;
  }
}

/** The jobs of this tab in the order of their turns, the running one first: {key, kind, fields, like, sources, mask}. */
export class Jobs {
  constructor(database) {
    this.database = database;
    this.list = [];
  }

  /** What was waiting, or running, when this page was left. */
  async load() {
    const kept = parsed(sessionStorage.getItem(JOBS)) ?? [];
    this.list = await Promise.all(kept.map(async (job) => ({ ...job, left: true, ...(await this.files(job)) })));
  }

  async add(job) {
    this.list.push(job);
    if (job.sources.length) await this.change((store) => store.put({ id: job.key, files: job.sources, mask: job.mask }));
    this.keep();
  }

  async remove(job) {
    this.list = this.list.filter((other) => other !== job);
    this.keep();
    if (job.sources.length) await this.change((store) => store.delete(job.key));
  }

  keep() {
    if (!this.list.length) return sessionStorage.removeItem(JOBS);
    const kept = this.list.map(({ sources, mask, left, ...job }) => ({ ...job, files: sources.length }));
    sessionStorage.setItem(JOBS, JSON.stringify(kept));
  }

  async files({ key, files }) {
    const found = files ? await this.database.ask(STORE, "readonly", (store) => store.get(key)) : null;
    return { sources: found?.files ?? [], mask: found?.mask ?? null };
  }

  change(work) {
    return this.database.ask(STORE, "readwrite", work);
  }
}
