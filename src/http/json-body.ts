import { isUtf8 } from 'node:buffer';
import { fail } from '../errors';

/** How deep a body may nest. Nothing of the contract needs more than a few levels; observations may carry some. */
export const MAX_DEPTH = 64;

/** In a larger body it is not looked for which name is there twice, in bytes: that costs many times the parsing. */
const MAX_SEARCHED = 64 * 1024;

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const COLON = 0x3a;

/**
 * Reads a JSON body, deciding once for the whole program what `JSON.parse` leaves open: duplicate keys, `__proto__`,
 * deep nesting, `\u0000`, lone surrogates and numbers that are not finite are refused, whatever the database.
 * @throws ERR_VALIDATION naming the field
 */
export function parseJsonBody(body: Buffer): unknown {
  if (body.length === 0) throw fail('ERR_VALIDATION', { body: 'must not be empty' });
  if (!isUtf8(body)) throw fail('ERR_VALIDATION', { body: 'must be UTF-8' });
  const text = body.toString('utf8');
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw fail('ERR_VALIDATION', { body: 'must be JSON' });
  }
  const members = { count: 0 };
  inspect(value, [], members);
  if (members.count !== countMembers(body)) {
    const name = body.length <= MAX_SEARCHED ? findDuplicate(text) : undefined;
    throw fail(
      'ERR_VALIDATION',
      name === undefined ? { body: 'must not hold a name twice' } : { [name]: 'must not be there twice' },
    );
  }
  return value;
}

/** Walks a parsed value, counts its members and refuses what is not allowed in any. */
function inspect(value: unknown, path: (string | number)[], members: { count: number }): void {
  if (typeof value === 'string') {
    checkText(value, path);
  } else if (typeof value === 'number') {
    if (!Number.isFinite(value))
      throw fail('ERR_VALIDATION', { [nameOf(path)]: 'must be a number that can be represented' });
  } else if (typeof value === 'object' && value !== null) {
    if (path.length >= MAX_DEPTH)
      throw fail('ERR_VALIDATION', { body: `must not nest deeper than ${MAX_DEPTH}` });
    const depth = path.length;
    path.push('');
    if (Array.isArray(value)) {
      for (let i = 0; i < value.length; i++) {
        path[depth] = i;
        inspect(value[i], path, members);
      }
    } else {
      for (const key of Object.keys(value)) {
        members.count++;
        path[depth] = key;
        if (key === '__proto__')
          throw fail('ERR_VALIDATION', { [nameOf(path)]: 'is not a name that can be used' });
        checkText(key, path);
        inspect((value as Record<string, unknown>)[key], path, members);
      }
    }
    path.pop();
  }
}

function checkText(text: string, path: (string | number)[]): void {
  if (text.includes('\0') || !text.isWellFormed()) {
    throw fail('ERR_VALIDATION', { [nameOf(path)]: 'must not hold \\u0000 or half of a surrogate pair' });
  }
}

/** A path as details name it: `tasks.3.spec.host`, with what can't be shown replaced. */
function nameOf(path: (string | number)[]): string {
  return path.length === 0 ? 'body' : path.join('.').toWellFormed().replaceAll('\0', '\ufffd').slice(0, 200);
}

/** Counts the members written in a body that is known to be JSON: its colons outside strings. By bytes, which is quicker. */
function countMembers(body: Buffer): number {
  let count = 0;
  for (let i = 0; i < body.length; i++) {
    const byte = body[i];
    if (byte === COLON) count++;
    else if (byte === QUOTE) {
      for (i++; body[i] !== QUOTE; i++) if (body[i] === BACKSLASH) i++;
    }
  }
  return count;
}

/** Names the first member that its object has twice, in a text that is known to be JSON and to have one. */
function findDuplicate(text: string): string {
  const open: { keys: Set<string> | undefined; at: string | number }[] = [];
  const tokens = /"[^"\\]*(?:\\.[^"\\]*)*"|[{}[\],]/g;
  for (let match = tokens.exec(text); match; match = tokens.exec(text)) {
    const token = match[0];
    const top = open.at(-1);
    if (token === '{') open.push({ keys: new Set(), at: '' });
    else if (token === '[') open.push({ keys: undefined, at: 0 });
    else if (token === '}' || token === ']') open.pop();
    else if (token === ',') {
      if (top && typeof top.at === 'number') top.at++;
    } else if (top?.keys && /^\s*:/.test(text.slice(tokens.lastIndex, tokens.lastIndex + 64))) {
      top.at = JSON.parse(token) as string;
      if (top.keys.has(top.at)) return nameOf(open.map((level) => level.at));
      top.keys.add(top.at);
    }
  }
  return 'body';
}
