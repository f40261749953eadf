/** Ends what setup.mjs began. */
export default () => globalThis.stopPostgres();
