import { isUtf8 } from 'node:buffer';
import { type ErrorDetails, fail } from '../errors';

/** How deep a body may nest. Nothing of the contract needs more than a few levels; observations may carry some. */
export const MAX_DEPTH = 64;

/** In a longer body it is not looked for which name is there twice, in characters: that costs more than the parsing. */
const MAX_SEARCHED = 64 * 1024;

const QUOTE = 0x22;
const COMMA = 0x2c;
const MINUS = 0x2d;
const DOT = 0x2e;
const ZERO = 0x30;
const NINE = 0x39;
const BACKSLASH = 0x5c;
const OPEN_LIST = 0x5b;
const CLOSE_LIST = 0x5d;
const OPEN_OBJECT = 0x7b;
const CLOSE_OBJECT = 0x7d;

/** A longer number may not be the one that was written. */
const EXACT_DIGITS = 15;

/** What is wrong with an item that is judged alone, by its path in the body. */
const faults = new WeakMap<object, ErrorDetails>();

/**
 * Of the objects and lists within items that are judged alone: how their numbers were written that JSON.stringify would
 * write otherwise. One that only has such a number further down is there too, without any of its own.
 */
const sources = new WeakMap<object, Map<string, string>>();

/**
 * Reads a JSON body, deciding once for the whole program what `JSON.parse` leaves open: keys that are there twice, deep
 * nesting and numbers that are not finite are refused. Texts are taken as they are, `\u0000` and lone surrogates included,
 * and any key is a member of its own, `__proto__` too: each field's own check says what it takes.
 * @param judgedAlone lists of the body whose items do not make the others wrong; {@link faultOf} tells of theirs
 * @throws ERR_VALIDATION naming the field
 */
export function parseJsonBody(body: Buffer, judgedAlone: readonly string[] = []): unknown {
  if (body.length === 0) throw fail('ERR_VALIDATION', { body: 'must not be empty' });
  if (!isUtf8(body)) throw fail('ERR_VALIDATION', { body: 'must be UTF-8' });
  const text = body.toString('utf8');
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw fail('ERR_VALIDATION', { body: 'must be JSON' });
  }
  new BodyInspection(text, judgedAlone).inspect(value);
  return value;
}

/** What the parser found wrong with an item of a list whose items are judged alone; undefined if nothing. */
export function faultOf(item: object): ErrorDetails | undefined {
  return faults.get(item);
}

/**
 * Writes a member of an object of a body, within an item that is judged alone, as it was sent: numbers with the digits that
 * they had (`-0.0`, `1e308`), texts with their escapes. The result is well-formed Unicode without `\u0000`, so that any
 * database can keep it.
 */
export function textOfMember(holder: object, name: string): string {
  const value = (holder as Record<string, unknown>)[name];
  if (typeof value === 'number') return sources.get(holder)?.get(name) ?? JSON.stringify(value);
  const isInexact = typeof value === 'object' && value !== null && sources.has(value);
  return isInexact ? JSON.stringify(value, asWritten) : JSON.stringify(value);
}

// In every Node that the program runs on; TypeScript's library does not have it yet.
const { rawJSON } = JSON as unknown as { rawJSON(text: string): unknown };

function asWritten(this: object, name: string, value: unknown): unknown {
  const source = typeof value === 'number' ? sources.get(this)?.get(name) : undefined;
  return source === undefined ? value : rawJSON(source);
}

/**
 * Goes through a text that is known to be JSON, beside the value that it was parsed to: the value alone does not tell which
 * keys were there twice or how a number was written.
 */
class BodyInspection {
  private at = 0;
  private readonly path: (string | number)[] = [];
  private readonly judgedAlone: ReadonlySet<unknown>;
  /** The item that is judged alone, while it is gone through. */
  private item: object | undefined;

  constructor(
    private readonly text: string,
    judgedAlone: readonly string[],
  ) {
    this.judgedAlone = new Set(judgedAlone);
  }

  inspect(value: unknown): void {
    this.value(value);
  }

  /** @returns whether some number of it would be written otherwise */
  private value(value: unknown, holder?: object): boolean {
    this.skipSpace();
    const code = this.text.charCodeAt(this.at);
    if (code === QUOTE) this.skipString();
    else if (code === MINUS || (code >= ZERO && code <= NINE)) return this.number(value, holder);
    else if (code === OPEN_OBJECT || code === OPEN_LIST) return this.container(value, code === OPEN_LIST);
    // true and null have four letters, false has five.
    else this.at += this.text.charCodeAt(this.at) === 0x66 ? 5 : 4;
    return false;
  }

  private number(value: unknown, holder: object | undefined): boolean {
    const start = this.at;
    let isPlain = true;
    for (;;) {
      const code = this.text.charCodeAt(++this.at);
      if (code >= ZERO && code <= NINE) continue;
      // What may stand in a number besides digits: . e E + -
      if (code !== DOT && code !== 0x65 && code !== 0x45 && code !== 0x2b && code !== MINUS) break;
      isPlain = false;
    }
    const isShort = this.at - start <= EXACT_DIGITS;
    if (isPlain && isShort && !(this.at - start === 2 && this.text.startsWith('-0', start))) return false;
    if (!Number.isFinite(value)) {
      // Of a key that is there twice the value is another; that is told by its object.
      if (typeof value === 'number') this.refuse(this.path, 'must be a number that can be represented');
      return false;
    }
    const source = this.text.slice(start, this.at);
    if (!this.item || !holder || source === JSON.stringify(value)) return false;
    this.remember(holder).set(String(this.path.at(-1)), source);
    return true;
  }

  private container(value: unknown, isList: boolean): boolean {
    // Of a key that is there twice the value is another; that is told by its object.
    if (typeof value !== 'object' || value === null || Array.isArray(value) !== isList) {
      this.skipContainer();
      return false;
    }
    if (this.path.length >= MAX_DEPTH) {
      this.refuse([], `must not nest deeper than ${MAX_DEPTH}`);
      this.skipContainer();
      return false;
    }
    const isItem = this.path.length === 2 && this.isInItem();
    if (isItem) this.item = value;
    const isInexact = isList ? this.list(value as unknown[]) : this.object(value as Record<string, unknown>);
    if (isInexact) this.remember(value);
    if (isItem) this.item = undefined;
    return isInexact;
  }

  private list(list: readonly unknown[]): boolean {
    const depth = this.path.length;
    let isInexact = false;
    this.path.push(0);
    for (let i = 0; this.hasMember(i, CLOSE_LIST); i++) {
      this.path[depth] = i;
      if (this.value(list[i], list)) isInexact = true;
    }
    this.path.pop();
    return isInexact;
  }

  private object(object: Record<string, unknown>): boolean {
    const depth = this.path.length;
    const start = this.at;
    let isInexact = false;
    let members = 0;
    this.path.push('');
    for (; this.hasMember(members, CLOSE_OBJECT); members++) {
      const name = this.name();
      this.path[depth] = name;
      if (this.value(object[name], object)) isInexact = true;
    }
    this.path.pop();
    if (members !== Object.keys(object).length) this.refuseDuplicate(start);
    return isInexact;
  }

  /** Steps over the opening bracket or the comma before a container's member, or over its closing bracket. */
  private hasMember(index: number, close: number): boolean {
    if (index === 0) this.at++;
    this.skipSpace();
    if (this.text.charCodeAt(this.at) === close) {
      this.at++;
      return false;
    }
    if (index > 0) this.at++;
    return true;
  }

  /** Reads a member's name and steps over its colon. */
  private name(): string {
    this.skipSpace();
    const start = this.at;
    this.skipString();
    const written = this.text.slice(start + 1, this.at - 1);
    this.skipSpace();
    this.at++;
    return written.includes('\\') ? (JSON.parse(`"${written}"`) as string) : written;
  }

  private skipSpace(): void {
    // The four that JSON allows are all up to 0x20, and nothing else of JSON is.
    while (this.text.charCodeAt(this.at) <= 0x20) this.at++;
  }

  private skipString(): void {
    for (this.at++; this.text.charCodeAt(this.at) !== QUOTE; this.at++)
      if (this.text.charCodeAt(this.at) === BACKSLASH) this.at++;
    this.at++;
  }

  /** Steps over an object or a list of any depth. */
  private skipContainer(): void {
    for (let depth = 0; ; ) {
      const code = this.text.charCodeAt(this.at);
      if (code === QUOTE) {
        this.skipString();
        continue;
      }
      this.at++;
      if (code === OPEN_OBJECT || code === OPEN_LIST) depth++;
      else if ((code === CLOSE_OBJECT || code === CLOSE_LIST) && --depth === 0) return;
    }
  }

  /** Names the first key that the object which begins here has twice. */
  private refuseDuplicate(start: number): void {
    if (this.text.length > MAX_SEARCHED) {
      this.refuse(this.path, 'must not hold a name twice');
      return;
    }
    const end = this.at;
    this.at = start + 1;
    const names = new Set<string>();
    let name = this.name();
    while (!names.has(name)) {
      names.add(name);
      this.skipSpace();
      const code = this.text.charCodeAt(this.at);
      if (code === OPEN_OBJECT || code === OPEN_LIST) this.skipContainer();
      else if (code === QUOTE) this.skipString();
      while (this.text.charCodeAt(this.at) !== COMMA) this.at++;
      this.at++;
      name = this.name();
    }
    this.at = end;
    this.refuse([...this.path, name], 'must not be there twice');
  }

  private isInItem(): boolean {
    return typeof this.path[1] === 'number' && this.judgedAlone.has(this.path[0]);
  }

  private remember(holder: object): Map<string, string> {
    let known = sources.get(holder);
    if (!known) {
      known = new Map();
      sources.set(holder, known);
    }
    return known;
  }

  /** @throws ERR_VALIDATION unless the fault is in an item that is judged alone: that keeps the first of its faults */
  private refuse(path: readonly (string | number)[], problem: string): void {
    if (!this.isInItem()) throw fail('ERR_VALIDATION', { [nameOf(path)]: problem });
    const field = nameOf(path.length === 0 ? this.path.slice(0, 2) : path);
    // An item that is no object is judged by that.
    if (this.item && !faults.has(this.item)) faults.set(this.item, { [field]: problem });
  }
}

/** A path as details name it: `tasks.3.spec.host`, with what can't be shown replaced. */
function nameOf(path: readonly (string | number)[]): string {
  return path.length === 0 ? 'body' : path.join('.').toWellFormed().replaceAll('\0', '\ufffd').slice(0, 200);
}
