// What makes a configuration bundle safe to use: its signature, its age, and the memory of what was accepted before.
import { createPublicKey, verify } from 'node:crypto';
import { closeSync, fsyncSync, openSync, readFileSync, renameSync, writeSync } from 'node:fs';

/**
 * Checks a bundle, and keeps it as the one that was accepted last.
 * @param keysFile the pinned keys: a JWK set, or one JWK
 * @param stateFile the bundle that was accepted last; made by the first
 * @returns the configuration
 * @throws where it must not be used
 */
export function acceptBundle(bundle, keysFile, stateFile) {
  const keys = readKeys(keysFile);
  if (typeof bundle.signature !== 'string') throw new Error(`it is not a bundle: ${bundle.message ?? ''}`);
  checkSignature(bundle, keys);
  checkAge(bundle, readLast(stateFile));
  writeLast(stateFile, bundle);
  return bundle.config;
}

/** @returns the pinned keys @throws if the file can't be read, or holds no key that could verify a bundle */
export function readKeys(file) {
  let pinned;
  try {
    pinned = JSON.parse(readFileSync(file, 'utf8'));
  } catch (error) {
    throw new Error(`the keys can't be read from ${file}: ${error.message}`);
  }
  const keys = pinned?.keys ?? [pinned];
  if (!Array.isArray(keys) || !keys.some((key) => typeof key?.kid === 'string' && typeof key.x === 'string'))
    throw new Error(`${file} holds no keys: it must be a JWK set, or one JWK with its kid`);
  return keys;
}

/** RFC 8785: members sorted by UTF-16 units; numbers and texts as JSON.stringify writes them. */
function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  const members = Object.keys(value)
    .sort()
    .map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`);
  return `{${members.join(',')}}`;
}

/** @throws where the signature is not one of the pinned keys' over this bundle */
function checkSignature({ signature, revision, seq, issued_at, expires_at, config }, keys) {
  const [, encodedHeader, encodedSignature] = /^([\w-]+)\.\.([\w-]+)$/.exec(signature) ?? [];
  if (!encodedHeader) throw new Error('the signature is not a detached JWS');
  const header = JSON.parse(Buffer.from(encodedHeader, 'base64url').toString());
  // The header comes from whoever made the bundle: it chooses among our keys, and nothing else.
  if (header.alg !== 'EdDSA' || 'crit' in header || 'b64' in header)
    throw new Error('the signature is not a plain EdDSA one');
  const key = keys.find(({ kid }) => typeof kid === 'string' && kid === header.kid);
  if (!key) throw new Error(`the key ${header.kid} is not pinned`);
  if (key.kty !== 'OKP' || key.crv !== 'Ed25519')
    throw new Error(`the key ${header.kid} is not an Ed25519 key`);
  const payload = Buffer.from(canonical({ revision, seq, issued_at, expires_at, config }));
  const genuine = verify(
    null,
    Buffer.from(`${encodedHeader}.${payload.toString('base64url')}`),
    createPublicKey({ key, format: 'jwk' }),
    Buffer.from(encodedSignature, 'base64url'),
  );
  if (!genuine) throw new Error('the signature does not fit: the bundle was changed, or is not from there');
}

/** @throws where a genuine bundle is too old */
function checkAge({ seq, revision, expires_at }, last) {
  // Written so that what is no date counts as expired, and what is no number as too low.
  if (!(Date.parse(expires_at) > Date.now())) throw new Error(`it expired at ${expires_at}`);
  if (!(Number.isSafeInteger(seq) && seq >= (last?.seq ?? 1)))
    throw new Error(`its seq ${seq} is below ${last?.seq}, which was accepted before`);
  if (seq === last?.seq && revision !== last.revision)
    throw new Error(`its seq ${seq} was accepted before with another revision`);
}

/** The bundle that was accepted last; undefined before the first. */
export function readLast(file) {
  try {
    return JSON.parse(readFileSync(file, 'utf8'));
  } catch (error) {
    if (error.code === 'ENOENT') return undefined;
    throw new Error(`${file}: ${error.message}`);
  }
}

/** Whole or not at all, and on the disk: a seq that is forgotten lets an old bundle in. */
function writeLast(file, bundle) {
  const unfinished = `${file}.new`;
  const handle = openSync(unfinished, 'w', 0o600);
  writeSync(handle, JSON.stringify(bundle));
  fsyncSync(handle);
  closeSync(handle);
  renameSync(unfinished, file);
}
