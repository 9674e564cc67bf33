// `npm test` takes a sample of what is counted in thousands; `npm run test:deep` takes all of it.

export const DEEP = process.env.LAYERCAST_DEEP === "1";
