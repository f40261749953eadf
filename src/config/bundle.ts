import canonicalize from 'canonicalize';
import { toTimestamp } from '../clock';
import type { ErrorDetails } from '../errors';
import { MAX_DEPTH } from '../http/json-body';
import type { ConfigEntity } from './config.entity';

/** Everything of a bundle but its signature. */
export type UnsignedBundle = Omit<ConfigEntity, 'kid' | 'signature'>;

/** A value as RFC 8785 writes it: one text for one value, so that a signature over it can be checked anywhere. */
export function canonicalText(value: object): string {
  return canonicalize(value) as string;
}

/** What is signed: the canonical form of `{revision, seq, issued_at, expires_at, config}`. */
export function signedText(bundle: UnsignedBundle): string {
  return canonicalText({
    revision: bundle.revision,
    seq: bundle.seq,
    issued_at: toTimestamp(bundle.issued_at),
    expires_at: toTimestamp(bundle.expires_at),
    config: JSON.parse(bundle.config),
  });
}

/** A bundle as agents get it. The configuration goes in as the text it was signed as. */
export function bundleText(bundle: UnsignedBundle & Pick<ConfigEntity, 'signature'>): string {
  const { revision, seq, issued_at, expires_at, signature } = bundle;
  const front = { revision, seq, issued_at: toTimestamp(issued_at), expires_at: toTimestamp(expires_at) };
  return `${JSON.stringify(front).slice(0, -1)},"config":${bundle.config},"signature":${JSON.stringify(signature)}}`;
}

/**
 * What of a configuration another JSON library could read differently, by field: such a thing must not be signed.
 * @returns empty where it can be signed
 */
export function findUnportable(config: unknown): ErrorDetails {
  const problems: ErrorDetails = {};
  if (typeof config !== 'object' || config === null || Array.isArray(config))
    return { config: 'must be an object' };
  inspect(config, 'config', 1, problems);
  return problems;
}

function inspect(value: unknown, path: string, depth: number, problems: ErrorDetails): void {
  if (typeof value === 'string') {
    if (!value.isWellFormed()) problems[path] = 'must not hold half of a surrogate pair';
  } else if (typeof value === 'number') {
    if (!Number.isFinite(value)) problems[path] = 'must be a finite number';
    else if (Number.isInteger(value) && !Number.isSafeInteger(value))
      problems[path] = 'must be an integer between -(2^53 - 1) and 2^53 - 1; write a larger one as a string';
  } else if (typeof value === 'object' && value !== null) {
    if (depth > MAX_DEPTH) {
      problems.config = `must not nest deeper than ${MAX_DEPTH}`;
      return;
    }
    for (const [name, member] of Object.entries(value)) {
      const at = `${path}.${name}`;
      if (name.isWellFormed()) inspect(member, at, depth + 1, problems);
      else problems[at.toWellFormed()] = 'must not have half of a surrogate pair in its name';
    }
  } else if (typeof value !== 'boolean' && value !== null) {
    problems[path] = 'must be JSON';
  }
}
