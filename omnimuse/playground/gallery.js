// What was made here before: in memory, and in this browser's IndexedDB so that it is there tomorrow.
// A record: {id, job, kind, fields, settings, sources, mask, blob, seed, width, height, lasts, seconds, url}: `job` is the key
// of what made it, `fields` what was sent, `settings` that and the model's defaults of the day, `url` is of this page's life
// only.

const MOST = 200;
const STORE = "made";

/** Newest first. Without a database (a private window) it works until the page is closed. */
export class Gallery {
  constructor(database) {
    this.database = database;
    this.records = [];
  }

  async load() {
    const found = (await this.database.ask(STORE, "readonly", (store) => store.getAll())) ?? [];
    this.records = found.sort((a, b) => b.id - a.id).map(withUrl);
  }

  async add(made) {
    const id = Math.max(Date.now(), (this.records[0]?.id ?? 0) + 1);
    const record = withUrl({ id, ...made });
    this.records.unshift(record);
    await this.keep(record);
    while (this.records.length > MOST) await this.remove(this.records.at(-1));
    return record;
  }

  async remove(record) {
    this.records = this.records.filter((other) => other !== record);
    await this.change((store) => store.delete(record.id));
  }

  async clear() {
    this.records = [];
    await this.change((store) => store.clear());
  }

  /** Puts back what was removed, where it was. */
  async restore(records) {
    this.records = [...this.records, ...records].sort((a, b) => b.id - a.id);
    for (const record of records) await this.keep(record);
  }

  keep({ url, ...kept }) {
    return this.change((store) => store.put(kept));
  }

  change(work) {
    return this.database.ask(STORE, "readwrite", work);
  }
}

const withUrl = (record) => ({ ...record, url: URL.createObjectURL(record.blob) });
