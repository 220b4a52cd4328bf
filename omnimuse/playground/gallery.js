// What was made here before: in memory, and in this browser's IndexedDB so that it is there tomorrow.
// A record: {id, kind, fields, settings, sources, blob, seed, width, height, lasts, seconds, url}: `fields` is what was
// sent, `settings` that and the model's defaults of the day, `url` is of this page's life only.

const MOST = 200;

function request(work) {
  return new Promise((resolve, reject) => {
    work.onsuccess = () => resolve(work.result);
    work.onerror = () => reject(work.error);
  });
}

/** Newest first. Without IndexedDB (a private window) it works until the page is closed. */
export class Gallery {
  constructor() {
    this.records = [];
    this.database = null;
  }

  async load() {
    try {
      const opening = indexedDB.open("omnimuse", 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore("made", { keyPath: "id" });
      this.database = await request(opening);
      const found = await request(this.store("readonly").getAll());
      this.records = found.sort((a, b) => b.id - a.id).map(withUrl);
    } catch (error) {
      console.info("This browser keeps no gallery:", error.message);
    }
  }

  store(mode) {
    return this.database.transaction("made", mode).objectStore("made");
  }

  async add(made) {
    const id = Math.max(Date.now(), (this.records[0]?.id ?? 0) + 1);
    const record = withUrl({ id, ...made });
    this.records.unshift(record);
    const { url, ...kept } = record;
    await this.change((store) => store.add(kept));
    while (this.records.length > MOST) await this.remove(this.records.at(-1));
    return record;
  }

  async remove(record) {
    this.records = this.records.filter((other) => other !== record);
    URL.revokeObjectURL(record.url);
    await this.change((store) => store.delete(record.id));
  }

  async clear() {
    for (const record of this.records) URL.revokeObjectURL(record.url);
    this.records = [];
    await this.change((store) => store.clear());
  }

  // A full disk must not take away the picture on the screen.
  async change(work) {
    if (this.database) await request(work(this.store("readwrite"))).catch((error) => console.info(error.message));
  }
}

const withUrl = (record) => ({ ...record, url: URL.createObjectURL(record.blob) });
