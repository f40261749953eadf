// Checks whether a configuration bundle is safe to use: by its signature, its expiry, and the last accepted bundle.
import { createPublicKey, verify } from 'node:crypto';
import { closeSync, fsyncSync, openSync, readFileSync, renameSync, writeSync } from 'node:fs';

/**
 * Checks a bundle, and stores it as the last accepted one.
 * @param keysFile the pinned keys: a JWK set, or one JWK
 * @param stateFile the last accepted bundle; created with the first
 * @returns the configuration
 * @throws Error the bundle must not be used
 */
export function acceptBundle(bundle, keysFile, stateFile) {
  const keys = readKeys(keysFile);
  if (typeof bundle.signature !== 'string') throw new Error(`it is not a bundle: ${bundle.message ?? ''}`);
  checkSignature(bundle, keys);
  checkAge(bundle, readLast(stateFile));
  writeLast(stateFile, bundle);
  return bundle.config;
}

/** Reads the pinned keys. @throws Error the file can't be read, or has no key that could verify a bundle */
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

/** Serializes by RFC 8785: members sorted by UTF-16 units; numbers and strings as JSON.stringify writes them. */
function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  const members = Object.keys(value)
    .sort()
    .map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`);
  return `{${members.join(',')}}`;
}

/** Verifies the signature. @throws Error it is not a signature of this bundle by one of the pinned keys */
function checkSignature({ signature, revision, seq, issued_at, expires_at, config }, keys) {
  const [, encodedHeader, encodedSignature] = /^([\w-]+)\.\.([\w-]+)$/.exec(signature) ?? [];
  if (!encodedHeader) throw new Error('the signature is not a detached JWS');
  const header = JSON.parse(Buffer.from(encodedHeader, 'base64url').toString());
  // The header is not trusted: it may choose one of our keys, and nothing else.
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

/** Checks the age of a genuine bundle. @throws Error it has expired, or is older than the last accepted one */
function checkAge({ seq, revision, expires_at }, last) {
  // Written so that an invalid date counts as expired, and an invalid number as too low.
  if (!(Date.parse(expires_at) > Date.now())) throw new Error(`it expired at ${expires_at}`);
  if (!(Number.isSafeInteger(seq) && seq >= (last?.seq ?? 1)))
    throw new Error(`its seq ${seq} is below ${last?.seq}, which was accepted before`);
  if (seq === last?.seq && revision !== last.revision)
    throw new Error(`its seq ${seq} was accepted before with another revision`);
}

/** Reads the last accepted bundle; undefined before the first. */
export function readLast(file) {
  try {
    return JSON.parse(readFileSync(file, 'utf8'));
  } catch (error) {
    if (error.code === 'ENOENT') return undefined;
    throw new Error(`${file}: ${error.message}`);
  }
}

/** Stores a bundle atomically and durably: if its seq were lost, an older bundle would be accepted. */
function writeLast(file, bundle) {
  const unfinished = `${file}.new`;
  const handle = openSync(unfinished, 'w', 0o600);
  writeSync(handle, JSON.stringify(bundle));
  fsyncSync(handle);
  closeSync(handle);
  renameSync(unfinished, file);
}
