import { createHash } from 'node:crypto';
import fc from 'fast-check';
import { hashSecret, hashToken, isHashOf, isWellFormed, mintToken, sameHash } from './tokens';

const ALPHABET = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';

describe('tokens', () => {
  it('are a prefix, 43 characters of secret and 6 of checksum, and never the same', () => {
    const tokens = Array.from({ length: 1_000 }, () => mintToken('dcpa_'));
    for (const token of tokens) {
      expect(token).toMatch(/^dcpa_[0-9A-Za-z]{49}$/);
      expect(isWellFormed('dcpa_', token)).toBe(true);
    }
    expect(new Set(tokens).size).toBe(tokens.length);
  });

  it('hold 256 random bits: every place of the secret takes many values', () => {
    const tokens = Array.from({ length: 500 }, () => mintToken('dcpo_'));
    for (let place = 5; place < 5 + 43; place++) {
      const seen = new Set(tokens.map((token) => token[place]));
      // 500 draws of 62 miss more than 22 of them about never; 256 bits are 42.99 places, so that goes for the first too.
      expect(seen.size).toBeGreaterThanOrEqual(40);
    }
  });

  it('show every typo of one character', () => {
    const token = mintToken('dcpa_');
    fc.assert(
      fc.property(
        fc.integer({ min: 5, max: token.length - 1 }),
        fc.constantFrom(...ALPHABET),
        (place, letter) => {
          fc.pre(token[place] !== letter);
          expect(isWellFormed('dcpa_', token.slice(0, place) + letter + token.slice(place + 1))).toBe(false);
        },
      ),
      { numRuns: 500 },
    );
  });

  it('show two neighbours that changed places', () => {
    const token = mintToken('dcpa_');
    for (let i = 5; i < token.length - 1; i++) {
      if (token[i] === token[i + 1]) continue;
      const swapped = `${token.slice(0, i)}${token[i + 1]}${token[i]}${token.slice(i + 2)}`;
      expect(isWellFormed('dcpa_', swapped)).toBe(false);
    }
  });

  it('are refused under another prefix, at another length and with other characters', () => {
    const token = mintToken('dcpa_');
    expect(isWellFormed('dcpo_', token)).toBe(false);
    expect(isWellFormed('dcpo_', token.replace('dcpa_', 'dcpo_'))).toBe(false);
    expect(isWellFormed('dcpa_', token.slice(0, -1))).toBe(false);
    expect(isWellFormed('dcpa_', `${token}0`)).toBe(false);
    expect(isWellFormed('dcpa_', `${token.slice(0, -1)}-`)).toBe(false);
    expect(isWellFormed('dcpa_', '')).toBe(false);
  });

  it('refuse any text that was not minted', () => {
    fc.assert(fc.property(fc.string({ maxLength: 80 }), (text) => !isWellFormed('dcpa_', text)));
  });

  it('are stored as their SHA-256 in hex', () => {
    const token = mintToken('dcpa_');
    expect(hashToken(token)).toBe(createHash('sha256').update(token).digest('hex'));
  });

  it('are compared by hash, whatever the lengths', () => {
    const hash = hashToken('a');
    expect(sameHash(hash, hashToken('a'))).toBe(true);
    expect(sameHash(hash, hashToken('b'))).toBe(false);
    expect(sameHash(hash, '')).toBe(false);
    expect(sameHash('', '')).toBe(true);
  });

  it('that a person chose are stored salted, and are compared by what is stored', async () => {
    const [first, second] = [
      await hashSecret('a-secret-of-24-characters'),
      await hashSecret('a-secret-of-24-characters'),
    ];
    expect(first).toMatch(/^scrypt\$[\w-]{22}\$[\w-]{43}$/);
    expect(second).not.toBe(first);
    expect(await isHashOf(first, 'a-secret-of-24-characters')).toBe(true);
    expect(await isHashOf(first, 'a-secret-of-24-characterz')).toBe(false);
    expect(await isHashOf(hashToken('a-secret-of-24-characters'), 'a-secret-of-24-characters')).toBe(false);
  });
});
