// This browser's IndexedDB, where there is one: a private window may have none, and the page works all the same.

const STORES = { made: "id", waiting: "id" };

function answer(work) {
  return new Promise((resolve, reject) => {
    work.onsuccess = () => resolve(work.result);
    work.onerror = () => reject(work.error);
  });
}

export class Database {
  constructor() {
    this.opened = null;
  }

  async open() {
    try {
      const opening = indexedDB.open("omnimuse", 2);
      opening.onupgradeneeded = () => {
        for (const [name, keyPath] of Object.entries(STORES)) {
          if (!opening.result.objectStoreNames.contains(name)) opening.result.createObjectStore(name, { keyPath });
        }
      };
      this.opened = await answer(opening);
    } catch (error) {
      console.info("This browser keeps nothing:", error.message);
    }
  }

  /** What `work` asks of the store `name`; undefined where it cannot be had: a full disk must not end the work. */
  async ask(name, mode, work) {
    if (!this.opened) return undefined;
    try {
      return await answer(work(this.opened.transaction(name, mode).objectStore(name)));
    } catch (error) {
      console.info(error.message);
      return undefined;
    }
  }
}
